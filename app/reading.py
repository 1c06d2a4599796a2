"""What clients send, read and checked at the edge so that nothing further in has to check again."""

import json
from typing import Any, TypeVar

from flask import Request, current_app, request
from pydantic import ValidationError

from app.errors import Problem, shorten
from app.fields import ALLOWED, LEXICON
from app.schemas import Body
from app.slow import READING

# Mistakes told in one answer.
MAX_ERRORS = 20
DISCARDED_BYTES, BLOCK_BYTES = 1 << 20, 1 << 16
# A field nobody knows may hold what must not come back in an answer, nor stay in a client's log.
SECRET_WORDS = ("key", "token", "secret", "password", "auth")

T = TypeVar("T", bound=Body)


def take_body() -> None:
    """Before every request but those with files: read the whole body, within limits of size and
    time.

    Raises:
        Problem: 413 for more than the limit, 415 for a compressed body.
    """
    refuse_encoding()
    # The same for WebSocket messages: what is not offered cannot be agreed on.
    request.environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)
    data, limit = request.get_data(), current_app.config["MAX_CONTENT_LENGTH"]
    # A chunked body does not announce its length and is cut at the limit without a word.
    is_cut = request.content_length is None and len(data) >= limit
    if is_cut:
        discard_rest()
    READING.end(request.environ.get("gunicorn.socket"))
    if is_cut:
        raise Problem(413, f"The body is larger than {limit} bytes.")


def discard_rest() -> None:
    """The rest of a body that is too large, if it is not much: gunicorn closes a connection with
    more left, without telling its client, who may be sending the next request.
    """
    for _ in range(DISCARDED_BYTES // BLOCK_BYTES):
        if not request.environ["wsgi.input"].read(BLOCK_BYTES):
            break


def refuse_encoding() -> None:
    """Problem: 415 for a compressed body."""
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        # A megabyte can unpack to gigabytes, and text this short gains nothing.
        raise Problem(415, f"Content-Encoding is {shorten(encoding)}; send the body as it is.")


def read_json(request: Request) -> Any:
    """The request's JSON body.

    Raises:
        Problem: 415 for another content type, 400 for what is not JSON.
    """
    if request.mimetype != "application/json":
        got = request.mimetype or "none"
        raise Problem(415, f"Content-Type is {got}; send application/json.")
    return parse_json(request.get_data())


def parse_json(data: bytes | str) -> Any:
    """What a client sent as JSON.

    Raises:
        Problem: 400 for what is not JSON, or holds a name twice, or is nested too deeply to read.
    """
    try:
        return json.loads(data, parse_constant=_refuse_constant, object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        # UnicodeDecodeError is a ValueError too.
        raise Problem(400, f"The body is not valid JSON: {error}.") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two equal names, readers differ in which counts; a proxy may have checked the other."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{shorten(name)!r} stands in it twice")
        found[name] = value
    return found


def validate(schema: type[T], data: Any) -> T:
    """Check data against a schema.

    Raises:
        Problem: 422 with one error per field: its name, the value sent, and what is allowed.
    """
    if not isinstance(data, dict):
        raise Problem(422, f"The body must be a JSON object, not {type(data).__name__}.")
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        # A body of unknown fields only must not get an answer many times its size.
        errors = [_field_error(schema, entry) for entry in error.errors()[:MAX_ERRORS]]
        detail = "; ".join(f"{entry['field']}: {entry['detail']}" for entry in errors)
        raise Problem(422, detail, errors=errors) from None


def _field_error(schema: type[Body], error: Any) -> dict[str, Any]:
    # A union ("a number or null") appends the branch that was tried; the field comes first.
    # No field at all: its name is half a surrogate pair, and given as the input.
    field = shorten(str(error["loc"][0] if error["loc"] else error["input"]))
    detail = _allowed(schema, field, error)
    value = None if error["type"] == "missing" else shorten(error["input"])
    if field not in schema.model_fields and any(word in field.lower() for word in SECRET_WORDS):
        value = "***"
    return {"field": field, "value": value, "detail": detail}


def _allowed(schema: type[Body], field: str, error: Any) -> str:
    allowed = ALLOWED | schema.allowed
    if error["type"] == "missing":
        return f"is required: {allowed[field]}"
    if field not in schema.model_fields:
        return f"is not a known field; known are {', '.join(schema.model_fields)}"
    if error["type"] == LEXICON:
        return f"must be {allowed[field]}; {error['msg']}"
    return f"must be {allowed[field]}" if field in allowed else str(error["msg"])
