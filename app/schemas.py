"""What clients may send, as pydantic models: the routes' bodies and the messages on a WebSocket."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app.fields import (
    MAX_NAME,
    V1_SPEED,
    BookName,
    ChunkChars,
    Language,
    Lexicon,
    Pause,
    Seed,
    Speed,
    Steps,
)


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
