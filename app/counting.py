"""Counts every answer of the web and sends a process's figures to Redis once a second."""

import atexit
import logging
import threading

import redis
from flask import Flask, Response, request

from app.jobs import Speech, speech
from tasks.measures import HTTP

logger = logging.getLogger(__name__)

SEND_S = 1.0
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def start(app: Flask) -> None:
    """Count from now on."""
    app.after_request(_count)
    send_figures(app.extensions["speech"])


def send_figures(speech: Speech) -> None:
    """From now on; what is counted last is sent when the process ends."""
    threading.Thread(target=_run, args=(speech,), name="figures", daemon=True).start()
    atexit.register(_send, speech)


def _count(response: Response) -> Response:
    # The rule, not the path, and no method we never heard of: a stranger must not make series.
    route = request.url_rule.rule if request.url_rule else "none"
    method = request.method if request.method in METHODS else "other"
    speech().meter.count(HTTP, method, route, str(response.status_code))
    return response


def _run(speech: Speech) -> None:
    pause = threading.Event()
    while not pause.wait(SEND_S):
        _send(speech)


def _send(speech: Speech) -> None:
    try:
        speech.meter.send(speech.store.redis)
    except redis.RedisError as error:
        # Kept, and sent with the next ones.
        logger.warning("could not send figures: %s", error)
