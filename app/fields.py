"""The fields of what clients may send: their types, their limits, and how these are told."""

import re
from typing import Annotated

from flask import current_app, has_app_context
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from app.chapters import is_shown
from supertonic.characters import LANGUAGES
from supertonic.errors import LexiconError
from supertonic.lexicon import MAX_SPOKEN_CHARS, MAX_WRITTEN_CHARS, check_entry
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

# How they are told, to who got them wrong and in the OpenAPI document.
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
