"""The web side: takes text, gives sound. It never loads torch; the workers do the speaking.

Read it in this order: ``api``, ``job_routes`` and ``books`` (routes), ``jobs`` (request → job →
chunks), ``follow`` (job → audio in order), ``stream`` (Server-Sent Events), ``websocket`` (binary
frames), ``errors`` (what clients are told when it goes wrong).
"""

from pathlib import Path

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from app import access, admission, api, counting, errors, origins, seats, uploads, websocket
from app.accepting import Accepting
from app.books import book_routes
from app.fields import check_language
from app.hangup import HangupWatch
from app.job_routes import job_routes
from app.jobs import Speech
from app.keys import Keyring
from app.limits import SpeechLimit
from app.openai_api import openai_api
from app.openapi import openapi
from app.pages import pages
from app.service_routes import service_routes
from supertonic.memory import reuse_large_buffers
from tasks.events import connect
from tasks.idempotency import IdempotencyKeys
from tasks.logs import set_up
from tasks.longjobs import LongJobs
from tasks.settings import Settings
from tasks.webhooks import Webhooks

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


def create_app(settings: Settings | None = None) -> Flask:
    """The WSGI application. Starts three threads, so call it once per process, after any fork."""
    settings = settings or Settings.from_env()
    set_up(settings, "web")
    reuse_large_buffers()
    client = connect(settings.redis_url)
    app = Flask(__name__, template_folder=str(TEMPLATES), static_folder="static")
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.config["LANGUAGE"] = check_language(settings)
    # No pings: a listener who pauses would not answer them.
    app.config["SOCK_SERVER_OPTIONS"] = {"max_message_size": settings.max_body_bytes}
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    keyring = Keyring(settings)
    app.extensions["keyring"] = keyring
    app.extensions["origins"] = origins.Origins(settings, keyring)
    app.extensions["speech_limit"] = SpeechLimit(settings.rate_limit, client)
    app.extensions["hangup"] = HangupWatch()
    app.extensions["speech"] = Speech.over(client, settings)
    app.extensions["accepting"] = Accepting(
        app.extensions["speech"], IdempotencyKeys(settings.data_dir), Webhooks(settings)
    )
    app.extensions["long_jobs"] = LongJobs(app.extensions["speech"].store)
    errors.register(app)
    counting.start(app)
    # What costs nothing to check comes first; the body is read only for those who may send one.
    app.before_request(origins.check_origin)
    app.before_request(access.check_access)
    app.before_request(seats.take_seat)
    app.before_request(uploads.take)
    app.after_request(access.tell_standing)
    app.after_request(origins.finish)
    app.after_request(admission.tell_wait)
    app.register_blueprint(api.api)
    app.register_blueprint(job_routes)
    app.register_blueprint(book_routes)
    app.register_blueprint(service_routes)
    app.register_blueprint(pages)
    app.register_blueprint(openai_api)
    app.register_blueprint(openapi)
    app.register_blueprint(websocket.blueprint)
    if settings.proxies:
        hops = settings.proxies
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops
        )
    return app
