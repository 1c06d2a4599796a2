"""The web side: takes text, gives sound. It never loads torch; the workers do the speaking.

Read it in this order: ``api`` and ``job_routes`` (routes), ``jobs`` (request → job → chunks),
``follow`` (job → audio in order), ``stream`` (Server-Sent Events and WebSocket), ``errors`` (what
clients are told when it goes wrong).
"""

from pathlib import Path

from flask import Flask

from app import api, counting, errors, stream
from app.access import check_access
from app.bell import Bell
from app.hangup import HangupWatch
from app.job_routes import job_routes
from app.jobs import Speech
from app.pages import pages
from tasks.events import EventStore, connect
from tasks.jobfiles import JobFiles
from tasks.logs import set_up
from tasks.settings import Settings
from tasks.workers import WorkerRecords

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


def create_app(settings: Settings | None = None) -> Flask:
    """The WSGI application. Starts three threads, so call it once per process, after any fork."""
    settings = settings or Settings.from_env()
    set_up(settings, "web")
    client = connect(settings.redis_url)
    app = Flask(__name__, template_folder=str(TEMPLATES), static_folder="static")
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    # No pings: they would come from another thread, in the middle of a large frame.
    app.config["SOCK_SERVER_OPTIONS"] = {"max_message_size": settings.max_body_bytes}
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    app.extensions["hangup"] = HangupWatch()
    app.extensions["speech"] = Speech(
        settings,
        EventStore(client),
        WorkerRecords(client),
        Bell(client),
        JobFiles(settings.data_dir),
    )
    errors.register(app)
    counting.start(app)
    app.before_request(check_access)
    app.register_blueprint(api.api)
    app.register_blueprint(job_routes)
    app.register_blueprint(pages)
    stream.sock.init_app(app)
    return app
