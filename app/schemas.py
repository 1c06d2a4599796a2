"""What clients may send, checked at the edge so that nothing further in has to check again."""

import json
import re
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from flask import Request, current_app, has_app_context, request
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.chapters import is_shown
from app.errors import Problem, shorten
from app.slow import READING
from supertonic.errors import LexiconError
from supertonic.lexicon import MAX_SPOKEN_CHARS, MAX_WRITTEN_CHARS, check_entry
from supertonic.text import LANGUAGES
from tasks.settings import Settings, SettingsError

STEPS = (1, 50)
SPEED = (0.5, 2.0)
V1_SPEED = (0.25, 4.0)
PAUSE_S = (0.0, 3.0)
SEED = (0, 2**32 - 1)
CHUNK_CHARS = (50, 900)
MAX_ENTRIES = 500  # of a request's lexicon
MAX_NAME = 100  # of a text on a WebSocket
MAX_BOOK_NAME = 200
# A chunk, and samples of the one after it: 3, or 3+24576.
EVENT_ID = r"[0-9]{1,12}(\+[0-9]{1,12})?"
# Mistakes told in one answer.
MAX_ERRORS = 20
# A field nobody knows may hold what must not come back in an answer, nor stay in a client's log.
SECRET_WORDS = ("key", "token", "secret", "password", "auth")


def _whole(value: object) -> object:
    """JSON knows one kind of number: 8.0 is 8."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Steps = Annotated[int, Field(strict=True, ge=STEPS[0], le=STEPS[1]), BeforeValidator(_whole)]
Speed = Annotated[float, Field(strict=True, ge=SPEED[0], le=SPEED[1])]
Pause = Annotated[float, Field(strict=True, ge=PAUSE_S[0], le=PAUSE_S[1])]
Seed = Annotated[int, Field(strict=True, ge=SEED[0], le=SEED[1]), BeforeValidator(_whole)]
ChunkChars = Annotated[
    int, Field(strict=True, ge=CHUNK_CHARS[0], le=CHUNK_CHARS[1]), BeforeValidator(_whole)
]


def _name(value: str) -> str:
    if not all(map(is_shown, value)):
        raise ValueError("holds what cannot be shown")
    return value.strip()


BookName = Annotated[str, Field(strict=True, max_length=MAX_BOOK_NAME), AfterValidator(_name)]


def _entries(value: object) -> object:
    """Of a lexicon, one mistake is told: there may be hundreds."""
    try:
        if isinstance(value, dict):
            if len(value) > MAX_ENTRIES:
                raise LexiconError(f"it has {len(value)} entries")
            for written, spoken in value.items():
                check_entry(written, spoken)
    except LexiconError as error:
        raise PydanticCustomError(LEXICON, "{reason}", {"reason": str(error)}) from None
    return value


LEXICON = "lexicon"
Lexicon = Annotated[
    dict[str, str],
    Field(strict=True),
    BeforeValidator(_entries),
    # Of a key's limits pydantic would say nothing.
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MAX_ENTRIES,
            "propertyNames": {"maxLength": MAX_WRITTEN_CHARS, "pattern": r"\S"},
            "additionalProperties": {
                "type": "string",
                "maxLength": MAX_SPOKEN_CHARS,
                "pattern": r"\S",
            },
        }
    ),
]


def language_code(value: object) -> object:
    """Of a language with its region, the language: ``en-US`` and ``EN`` are ``en``."""
    return re.split("[-_]", value)[0].lower() if isinstance(value, str) else value


def check_language(settings: Settings) -> str:
    """The language of requests that name none. SettingsError: nobody speaks it."""
    if settings.language not in LANGUAGES:
        known = ", ".join(LANGUAGES)
        raise SettingsError(f"SUPERTONIC_LANGUAGE={settings.language!r}: expected one of {known}")
    return settings.language


def _usual_language() -> str:
    return str(current_app.config["LANGUAGE"]) if has_app_context() else "en"


Language = Annotated[
    str, Field(strict=True, default_factory=_usual_language), BeforeValidator(language_code)
]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    # What to say of fields that mean something else than in other bodies.
    allowed: ClassVar[dict[str, str]] = {}


class Text(Body):
    text: Annotated[str, Field(strict=True)]


class Manner(Body):
    """How something is to be spoken. Voices and languages are checked against the model."""

    voice: Annotated[str, Field(strict=True)] = "M1"
    language: Language
    steps: Steps = 2
    speed: Speed = 1.05
    seed: Seed | None = None
    pause_s: Pause = 0.3
    paragraph_pause_s: Pause | None = None
    end_pause_s: Pause = 0.0
    lexicon: Lexicon = {}


class SpeechBody(Manner, Text):
    """Fields of every request for speech."""


class FileBody(SpeechBody):
    """POST /synthesize."""

    output_format: Literal["base64", "wav"] = "base64"


class StreamBody(FileBody):
    """POST /synthesize/stream. ``output_format`` is accepted, as the same fields go everywhere;
    events always carry WAV in base64. ``resumable`` keeps the job when the client goes away.
    ``slices`` lets a chunk come in several events, the first of them sooner.
    """

    resumable: Annotated[bool, Field(strict=True)] = False
    slices: Annotated[bool, Field(strict=True)] = False


class BeginBody(Manner):
    """A text on a WebSocket that comes in fragments. Its ``id`` is in every message about it."""

    slices: Annotated[bool, Field(strict=True)] = True
    id: Annotated[str, Field(strict=True, max_length=MAX_NAME)] | None = None


class WishBody(BeginBody, SpeechBody):
    """A text on a WebSocket."""


class LongBody(FileBody):
    """POST /synthesize/long. With ``chapters`` lines that begin with # are their titles; ``title``
    and ``author`` are told to those who play the book.
    """

    target_chunk_chars: ChunkChars = 300
    max_chunk_chars: ChunkChars = 900
    chapters: Annotated[bool, Field(strict=True)] = False
    chapter_pause_s: Pause = 1.5
    title: BookName = ""
    author: BookName = ""
    webhook_url: Annotated[str, Field(strict=True)] | None = None


def _voice_name(value: Any) -> Any:
    """OpenAI's clients may send ``{"id": …}``."""
    return value["id"] if isinstance(value, dict) and isinstance(value.get("id"), str) else value


class V1Body(Body):
    """POST /v1/audio/speech. From ``language`` on the fields are this server's own."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    input: Annotated[str, Field(strict=True)]
    model: Annotated[str, Field(strict=True)] = "tts-1"
    voice: Annotated[str, Field(strict=True), BeforeValidator(_voice_name)] = "alloy"
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: Annotated[float, Field(strict=True, ge=V1_SPEED[0], le=V1_SPEED[1])] = 1.0
    stream_format: Literal["audio", "sse"] = "audio"
    language: Language
    steps: Steps | None = None
    seed: Seed | None = None
    pause_s: Pause = 0.3
    lexicon: Lexicon = {}
    sample_rate: Literal[16000, 22050, 24000, 44100, 48000] | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Some clients send every field they know, null where they want nothing."""
        return {name: value for name, value in data.items() if value is not None}

    allowed: ClassVar[dict[str, str]] = {
        "speed": f"a number from {V1_SPEED[0]} to {V1_SPEED[1]}",
        "voice": "the name of a voice, as GET /v1/audio/voices lists them, or a mixture",
    }


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


class BatchBody(Body):
    """POST /config/batch. Not strict: in a query string every number is text."""

    max_batch_size: Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=256)] | None = None
    max_wait_time_ms: Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1000)] | None = (
        None
    )


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
    data = request.get_data()
    READING.end(request.environ.get("gunicorn.socket"))
    limit = current_app.config["MAX_CONTENT_LENGTH"]
    # A chunked body does not announce its length and is cut at the limit without a word.
    if request.content_length is None and len(data) >= limit:
        raise Problem(413, f"The body is larger than {limit} bytes.")


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


ALLOWED = {
    "steps": f"a whole number from {STEPS[0]} to {STEPS[1]}",
    "speed": f"a number from {SPEED[0]} to {SPEED[1]}",
    "pause_s": f"a number of seconds from {PAUSE_S[0]:g} to {PAUSE_S[1]:g}",
    "paragraph_pause_s": f"a number of seconds from {PAUSE_S[0]:g} to {PAUSE_S[1]:g}, or null",
    "end_pause_s": f"a number of seconds from {PAUSE_S[0]:g} to {PAUSE_S[1]:g}",
    LEXICON: f"an object of at most {MAX_ENTRIES} words or phrases to how they are read, such as "
    '{"SQL": "sequel"}',
    "id": f"a string of at most {MAX_NAME} characters",
    "seed": f"a whole number from {SEED[0]} to {SEED[1]}, or null for a random one",
    "target_chunk_chars": f"a whole number from {CHUNK_CHARS[0]} to {CHUNK_CHARS[1]}",
    "max_chunk_chars": f"a whole number from {CHUNK_CHARS[0]} to {CHUNK_CHARS[1]}",
    "chapters": "true or false",
    "chapter_pause_s": f"a number of seconds from {PAUSE_S[0]:g} to {PAUSE_S[1]:g}",
    "title": f"a string of at most {MAX_BOOK_NAME} characters without line breaks and the like",
    "author": f"a string of at most {MAX_BOOK_NAME} characters without line breaks and the like",
    "webhook_url": "an https or http URL, or null",
    "output_format": '"base64" or "wav"',
    "resumable": "true or false",
    "slices": "true or false",
    "max_batch_size": "a whole number from 1 to 256",
    "max_wait_time_ms": "a number of milliseconds from 0 to 1000",
    "text": "a string",
    "input": "the text, a string",
    "model": "a string; tts-1-hd takes more steps",
    "response_format": "mp3, opus, aac, flac, wav or pcm",
    "stream_format": '"audio" or "sse"',
    "sample_rate": "16000, 22050, 24000, 44100 or 48000, or null for the format's own",
    "voice": "the name of a voice, as GET /voices lists them, or a mixture such as M1(2)+F3",
    "language": "the code of a language, as GET /voices lists them",
}


def _allowed(schema: type[Body], field: str, error: Any) -> str:
    allowed = ALLOWED | schema.allowed
    if error["type"] == "missing":
        return f"is required: {allowed[field]}"
    if field not in schema.model_fields:
        return f"is not a known field; known are {', '.join(schema.model_fields)}"
    if error["type"] == LEXICON:
        return f"must be {allowed[field]}; {error['msg']}"
    return f"must be {allowed[field]}" if field in allowed else str(error["msg"])
