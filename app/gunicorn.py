"""gunicorn's configuration: ``gunicorn -c app/gunicorn.py 'app:create_app()'``."""

import json
import time
from typing import Any

from gunicorn import util
from gunicorn.workers.gthread import ThreadWorker

from app.errors import TITLES, Problem
from app.keys import Keyring
from app.seats import SEATS
from app.slow import READING
from supertonic.memory import give_back_every, spare_what_is_there
from tasks.redact import redact
from tasks.settings import Settings

_settings = Settings.from_env()

GIVE_BACK_S = 60.0
STOP_S, LAST_WORDS_S = 8, 2


def write_problem(sock: Any, status: int, reason: str, detail: str) -> None:
    """In place of gunicorn's HTML, for requests so wrong that the application never sees them."""
    problem = Problem(status, redact(detail)).body() | {"title": TITLES.get(status, reason)}
    body = json.dumps(problem).encode()
    head = (
        f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nX-Content-Type-Options: nosniff\r\n"
        f"Content-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    util.write_nonblock(sock, head.encode() + body)


# There is no hook for it.
util.write_error = write_problem


class WebWorker(ThreadWorker):
    """Threads, not greenlets: nothing is patched, and an open stream costs one sleeping thread.

    A client that sends its request too slowly loses its connection and does not keep the thread.
    """

    def init_process(self) -> None:
        READING.start(self.cfg.threads)
        SEATS.start(self.cfg.threads)
        give_back_every(GIVE_BACK_S)
        super().init_process()

    def handle(self, conn: Any) -> Any:
        READING.begin(conn.sock)
        try:
            return super().handle(conn)
        finally:
            READING.end(conn.sock)
            SEATS.leave(conn.sock)

    def handle_exit(self, sig: Any, frame: Any) -> None:
        if self.booted:
            # Streams that will not be done in time say so before they are cut.
            self.wsgi.extensions["speech"].stops_at = time.monotonic() + STOP_S
        super().handle_exit(sig, frame)


def post_worker_init(worker: Any) -> None:
    """The application is loaded; only what requests make is new from now on."""
    spare_what_is_there()


def when_ready(server: Any) -> None:
    """Say once, not per process, what about the settings is unsafe."""
    keyring = Keyring(_settings)
    if not keyring.are_needed and _settings.host not in ("127.0.0.1", "::1", "localhost"):
        server.log.warning(
            "listening on %s without API keys: whoever reaches port %d can use this server and see "
            "its jobs. Set SUPERTONIC_API_KEYS or SUPERTONIC_API_KEYS_FILE (docs/security.md).",
            _settings.host,
            _settings.port,
        )
    for variable in keyring.plain():
        server.log.warning(
            "%s holds a key as it is; `python -m app keys hash` makes a line that gives nothing "
            "away and that the same key fits.",
            variable,
        )


bind = _settings.address
workers = _settings.web_processes
worker_class = WebWorker
threads = _settings.web_threads
worker_connections = _settings.web_threads + 200
keepalive = 30
# Open streams get this long to end when the server is stopped.
graceful_timeout = STOP_S + LAST_WORDS_S
timeout = 60
# One shape for the lines of all processes; it sets levels and handlers itself.
logger_class = "app.accesslog.Logger"
# Its default is one file per user: two servers on a machine would share it.
control_socket_disable = True
