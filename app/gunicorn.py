"""gunicorn's configuration: ``gunicorn -c app/gunicorn.py 'app:create_app()'``."""

from tasks.settings import Settings

_settings = Settings.from_env()

bind = f"{_settings.host}:{_settings.port}"
workers = _settings.web_processes
# Threads, not greenlets: nothing is patched, and an open stream costs one sleeping thread.
worker_class = "gthread"
threads = _settings.web_threads
worker_connections = _settings.web_threads + 200
keepalive = 30
# Open streams get this long to end when the server is stopped.
graceful_timeout = 10
timeout = 60
# One shape for the lines of all processes; it sets levels and handlers itself.
logger_class = "app.accesslog.Logger"
# Its default is one file per user: two servers on a machine would share it.
control_socket_disable = True
