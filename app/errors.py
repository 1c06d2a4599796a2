"""Every error a client can get, as ``application/problem+json`` (RFC 9457).

Routes raise ``Problem``; ``register`` makes one of every other exception.
"""

import errno
import logging
import math
from typing import Any

import redis
from flask import Flask, Response, current_app, has_request_context, json, jsonify, request
from gunicorn.http.errors import ParseException
from kombu.exceptions import OperationalError
from werkzeug.exceptions import HTTPException
from wsproto.utilities import RemoteProtocolError

from tasks.events import is_full
from tasks.places import PlaceAway

logger = logging.getLogger(__name__)

TITLES = {
    400: "The request cannot be read",
    401: "An API key is needed",
    403: "Not allowed",
    404: "Not found",
    405: "This method is not offered here",
    409: "Not possible in the present state",
    410: "No longer available",
    412: "The file is another one",
    413: "The request is too large",
    414: "The address is too long",
    415: "The body is of a type that is not read here",
    416: "There is no such range",
    422: "The request holds values that cannot be used",
    426: "Another version of the protocol is needed",
    429: "Too many requests",
    431: "The headers are too long",
    500: "The server made a mistake",
    503: "The service cannot take this request now",
    504: "The result did not come in time",
}


# Characters of a value that are repeated to the client.
SHORT = 80

# What OpenAI calls some of them.
ENVELOPED_AS_400 = {413, 415, 422}
CODES = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded"}
TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class Problem(Exception):
    """An error with a status, a sentence for people, and field errors for programs."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: list[dict[str, Any]] | None = None,
        retry_after_s: int | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors or []
        self.retry_after_s = retry_after_s
        self.extra = extra
        self.headers: dict[str, str] = {}

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": TITLES.get(self.status, "Error"),
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors:
            body["errors"] = self.errors
        return body | self.extra

    def envelope(self) -> dict[str, Any]:
        """The same as OpenAI's clients expect it."""
        status = self.envelope_status
        kind = "server_error" if status >= 500 else TYPES.get(status, "invalid_request_error")
        field = self.errors[0]["field"] if self.errors else None
        code = CODES.get(self.status)
        return {"error": {"message": self.detail, "type": kind, "param": field, "code": code}}

    @property
    def envelope_status(self) -> int:
        """Their SDKs know 400 for every mistake in a request."""
        return 400 if self.status in ENVELOPED_AS_400 else self.status

    def response(self) -> Response:
        if has_request_context() and request.path.startswith("/v1/"):
            response = jsonify(self.envelope())
            response.status_code = self.envelope_status
        else:
            response = jsonify(self.body())
            response.status_code = self.status
            response.content_type = "application/problem+json"
        if self.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        if self.retry_after_s is not None:
            response.headers["Retry-After"] = str(self.retry_after_s)
        response.headers.update(self.headers)
        return response


def field_problem(field: str, value: Any, detail: str) -> Problem:
    """A 422 about one field."""
    error = {"field": field, "value": shorten(value), "detail": detail}
    return Problem(422, f"{field}: {detail}", errors=[error])


def shorten(value: Any) -> Any:
    """A value as it may be repeated to the client: whole when short, its beginning when long."""
    is_infinite = isinstance(value, float) and not math.isfinite(value)
    if value is None or isinstance(value, (bool, int, float)) and not is_infinite:
        return value
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    # Half a surrogate pair cannot be sent back as UTF-8.
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= SHORT else text[:SHORT] + "…"


def away(error: Exception) -> Problem:
    """Redis cannot be reached or is full, or the queue where that is elsewhere."""
    if is_full(error):
        return full(error)
    is_queue = isinstance(error, OperationalError)
    what = "Redis" if not is_queue or isinstance(error.__cause__, redis.RedisError) else "The queue"
    logger.warning("%s is away: %s", what, error)
    return Problem(503, f"{what} cannot be reached; try again in a moment.", retry_after_s=2)


def no_worker() -> Problem:
    return Problem(
        503,
        "No speech worker is running. Start one with `make worker` (`make run` starts everything).",
        retry_after_s=5,
    )


def full(error: Exception) -> Problem:
    logger.error("Redis is full: %s", error)
    detail = "Redis has no memory left for this request; try again when others are done."
    return Problem(503, detail, retry_after_s=10)


def _is_there(path: str) -> bool:
    """Whether some route answers the request's method at this path."""
    try:
        current_app.url_map.bind("").match(path, method=request.method)
    except HTTPException:
        return False
    return True


def register(app: Flask) -> None:
    """Make every exception that leaves a route a problem response."""

    @app.errorhandler(Problem)
    def problem(error: Problem) -> Response:
        return error.response()

    @app.errorhandler(redis.ConnectionError)
    @app.errorhandler(redis.TimeoutError)
    @app.errorhandler(OperationalError)
    def unreachable(error: Exception) -> Response:
        return away(error).response()

    @app.errorhandler(PlaceAway)
    def place_away(error: PlaceAway) -> Response:
        logger.error("finished sound cannot be reached: %s", error)
        detail = "The place where finished sound is kept cannot be reached; try again in a moment."
        return Problem(503, detail, retry_after_s=10).response()

    @app.errorhandler(OSError)
    def disk(error: OSError) -> Response:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return mistake(error)
        logger.error("the disk is full: %s", error)
        detail = "The disk has no room left for this request; remove jobs, or try again later."
        return Problem(503, detail, retry_after_s=30).response()

    @app.errorhandler(redis.ResponseError)
    def refused(error: redis.ResponseError) -> Response:
        return full(error).response() if is_full(error) else mistake(error)

    @app.errorhandler(RemoteProtocolError)
    def handshake(error: RemoteProtocolError) -> Response:
        status = getattr(error.event_hint, "status_code", 400)
        response = Problem(status, f"This is no handshake of a WebSocket: {error}.").response()
        if status == 426:
            response.headers["Sec-WebSocket-Version"] = "13"
        return response

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        status = error.code or 500
        if status == 413:
            limit = app.config["MAX_CONTENT_LENGTH"]
            return Problem(413, f"The body is larger than {limit} bytes.").response()
        detail = error.description or error.name
        if status == 404:
            detail = f"There is nothing at {shorten(request.path)}."
            known = [f"/v1{request.path}", request.path.rstrip("/")]
            if better := next((path for path in known if _is_there(path)), None):
                detail += f" Is {better} meant?"
        response = Problem(status, detail).response()
        # Allow of a 405, Content-Range of a 416.
        for name, value in error.get_headers():
            if name != "Content-Type":
                response.headers[name] = value
        return response

    @app.errorhandler(ParseException)
    def unreadable(error: ParseException) -> Response:
        # A chunked body is parsed while it is read, so its faults come up inside the route.
        return Problem(400, f"The body is not sent as HTTP says: {error}").response()

    @app.errorhandler(Exception)
    def mistake(error: Exception) -> Response:
        # The last line of defence: the client learns that it was us, the log learns why.
        logger.exception("unexpected error")
        return Problem(
            500, "An unexpected error happened; the log of the server has it."
        ).response()
