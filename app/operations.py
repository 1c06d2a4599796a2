"""What the OpenAPI document says about each route beyond its address and method.

One entry per route, by endpoint; the document cannot be made while one is missing or too many.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from app import answers, query, schemas
from app.accepting import MAX_KEY_CHARS
from app.captions import CAPTION_TYPES
from app.encoding import FILE_FORMATS, MEDIA_TYPES
from tasks.dead_letters import MAX_LETTERS
from tasks.messages import State

JSON, WAV, SSE = "application/json", "audio/wav", "text/event-stream"
EXAMPLE = {"text": "Good morning. How are you?", "voice": "F1", "language": "en"}


@dataclass(frozen=True)
class Parameter:
    name: str
    schema: dict[str, Any]
    description: str
    place: str = "query"


@dataclass(frozen=True)
class Good:
    """An answer that is no problem. ``content`` maps media types to models, None for raw bytes."""

    description: str
    content: Mapping[str, type[BaseModel] | None] = field(default_factory=dict)
    headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Operation:
    summary: str
    good: Mapping[int, Good]
    # Statuses of problems besides those that every route has.
    problems: tuple[int, ...] = ()
    body: type[schemas.Body] | None = None
    is_body_needed: bool = True
    # Whether files may come in its place (app/uploads.py), with the other fields beside them.
    takes_files: bool = False
    example: Mapping[str, Any] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()
    description: str = ""
    needs_redis: bool = True


# A header has no type: whatever is sent is text.
IDEMPOTENCY_KEY = {"minLength": 1, "maxLength": MAX_KEY_CHARS}
# What is no range of bytes is ignored, as RFC 9110 wants it.
RANGE = {"type": "string"}
EVENT_ID = {"type": "string", "pattern": f"^{query.EVENT_ID}$"}
FLAG = {"type": "string", "enum": ["true", "false", "1", "0"]}
LONG_HEADERS = ("Location", "Idempotent-Replayed", "X-Queue-Wait-Ms")
JOB_HEADERS = ("X-Job-Id", "X-Seed", "X-Sample-Rate", "X-Queue-Wait-Ms", "X-Warnings")
AUDIO = Good("the sound", {JSON: answers.SpeechAnswer, WAV: None}, JOB_HEADERS)
EVENTS = Good("events, see `x-events`", {SSE: None}, ("X-Job-Id", "X-Queue-Wait-Ms"))
SOUNDS = dict.fromkeys(MEDIA_TYPES.values())
# Reading a body and speaking a text.
SPEAKING = (400, 413, 415, 422, 429, 500)

OPERATIONS: dict[str, Operation] = {
    "api.synthesize": Operation(
        "Speak a text; answer when all of it is spoken",
        {200: AUDIO},
        (*SPEAKING, 409),
        schemas.FileBody,
        example=EXAMPLE | {"output_format": "wav"},
    ),
    "api.synthesize_stream": Operation(
        "Speak a text; send each chunk as it is ready",
        {200: EVENTS},
        SPEAKING,
        schemas.StreamBody,
        example=EXAMPLE,
    ),
    "jobs.synthesize_long": Operation(
        "Accept a long text as a job",
        {
            202: Good("the job", {JSON: answers.JobAnswer}, LONG_HEADERS),
            200: Good("with wait=true: the sound", AUDIO.content, LONG_HEADERS),
        },
        (*SPEAKING, 409, 410),
        schemas.LongBody,
        takes_files=True,
        example=EXAMPLE,
        parameters=(
            Parameter("wait", FLAG, "answer once everything is spoken"),
            Parameter("Idempotency-Key", IDEMPOTENCY_KEY, "the same key, the same job", "header"),
        ),
        description=(
            "JSON; or a file (EPUB, Markdown, plain text) with the other fields beside it in a "
            "form; or such a file as the body, with the other fields in the query. An EPUB brings "
            "`chapters`, `title`, `author` and `language` where the request names none."
        ),
    ),
    "jobs.list_jobs": Operation(
        "List long jobs, the newest first",
        {200: Good("jobs", {JSON: answers.JobList})},
        (422,),
        parameters=(
            Parameter("limit", {"type": "integer", "minimum": 1, "maximum": 1000}, "at most"),
            Parameter("state", {"type": "string", "enum": list(State)}, "only those"),
            Parameter("cursor", {"type": "string"}, "next_cursor of the page before"),
        ),
    ),
    "jobs.get_job": Operation(
        "State and progress of a job", {200: Good("the job", {JSON: answers.JobAnswer})}, (404,)
    ),
    "jobs.delete_job": Operation(
        "Cancel a running job, remove an ended one",
        {200: Good("the job as it was left", {JSON: answers.DeletedJob})},
        (404,),
    ),
    "jobs.pause_job": Operation(
        "Hold a long job", {200: Good("the job", {JSON: answers.JobAnswer})}, (404, 409)
    ),
    "jobs.resume_job": Operation(
        "Let a paused job go on", {200: Good("the job", {JSON: answers.JobAnswer})}, (404, 409)
    ),
    "jobs.job_audio": Operation(
        "The finished sound; as WAV whole or in ranges",
        {
            200: Good(
                "the file",
                {MEDIA_TYPES[kind]: None for kind in FILE_FORMATS},
                ("Accept-Ranges", "ETag"),
            ),
            206: Good("the range", {WAV: None}, ("Content-Range",)),
            304: Good("not changed"),
        },
        (404, 409, 410, 412, 416, 422),
        parameters=(
            Parameter("Range", RANGE, "such as bytes=0-999", "header"),
            Parameter("partial", FLAG, "what there is of a job that is not done"),
            Parameter(
                "format", {"type": "string", "enum": [*FILE_FORMATS]}, "wav if none is given"
            ),
        ),
    ),
    "jobs.job_captions": Operation(
        "What is heard when: lines of the text with their times",
        {200: Good("the captions", {"text/vtt": None, "application/x-subrip": None})},
        (404, 409, 422),
        parameters=(
            Parameter("partial", FLAG, "what there is of a job that is not done"),
            Parameter("format", {"type": "string", "enum": [*CAPTION_TYPES]}, "vtt if none"),
        ),
    ),
    "books.job_chapters": Operation(
        "Where the chapters of a long job begin",
        {200: Good("the chapters", {JSON: answers.Chapters})},
        (404,),
    ),
    "books.job_book": Operation(
        "The audiobook of a long job that is done: AAC with chapters, whole or in ranges",
        {
            200: Good("the M4B", {"audio/mp4": None}, ("Accept-Ranges", "ETag")),
            206: Good("the range", {"audio/mp4": None}, ("Content-Range",)),
            304: Good("not changed"),
        },
        (404, 409, 410, 412, 416),
        parameters=(Parameter("Range", RANGE, "such as bytes=0-999", "header"),),
    ),
    "jobs.job_events": Operation(
        "Events of a job, from the beginning or from where you left",
        {200: EVENTS, 204: Good("everything has been seen")},
        (404, 422),
        parameters=(
            Parameter("audio", FLAG, "false leaves the sound out"),
            Parameter("last_event_id", EVENT_ID, "as Last-Event-ID"),
            Parameter("Last-Event-ID", EVENT_ID, "the last event seen", "header"),
        ),
    ),
    "websocket.synthesize": Operation(
        "Texts in, binary frames out, over a WebSocket",
        {101: Good("the WebSocket")},
        (400, 426),
        description=(
            'Send {"type": "speak", …} with the fields of a stream, or {"type": "cancel"}. Each '
            "chunk message is followed by one binary frame: signed 16-bit little-endian samples."
        ),
        needs_redis=False,
    ),
    "service.index": Operation(
        "Health; browsers are sent to the page",
        {200: Good("health", {JSON: answers.Health}), 302: Good("to the page", {}, ("Location",))},
    ),
    "service.voices": Operation(
        "Voices, languages, defaults, limits", {200: Good("voices", {JSON: answers.Voices})}
    ),
    "service.livez": Operation(
        "This process answers", {200: Good("alive", {JSON: answers.Alive})}, needs_redis=False
    ),
    "service.readyz": Operation(
        "Redis answers and a worker is ready to speak",
        {200: Good("ready", {JSON: answers.Ready})},
    ),
    "service.metrics": Operation(
        "Figures, as JSON or for Prometheus",
        {200: Good("figures", {JSON: answers.Figures, "text/plain": None})},
        (422,),
        parameters=(
            Parameter("format", {"type": "string", "enum": ["json", "prometheus"]}, "which"),
        ),
    ),
    "service.dead_letters": Operation(
        "Queue messages that nobody could use, the latest first",
        {200: Good("messages", {JSON: answers.DeadLetters})},
        (422,),
        parameters=(
            Parameter(
                "limit", {"type": "integer", "minimum": 1, "maximum": MAX_LETTERS}, "at most"
            ),
        ),
        description="Needs the admin key; without one set, only the same machine may.",
    ),
    "service.config_batch": Operation(
        "Change the batch limits while running",
        {200: Good("what is in force now", {JSON: answers.BatchAnswer})},
        (400, 413, 415, 422, 504),
        schemas.BatchBody,
        is_body_needed=False,
        example={"max_batch_size": 32},
        parameters=(
            Parameter(
                "max_batch_size", {"type": "integer", "minimum": 1, "maximum": 256}, "chunks"
            ),
            Parameter("max_wait_time_ms", {"type": "number", "minimum": 0, "maximum": 1000}, "ms"),
        ),
        description="Needs the admin key; without one set, only the same machine may.",
    ),
    "pages.ui": Operation(
        "The page", {200: Good("the page", {"text/html": None})}, needs_redis=False
    ),
    "openai.create_speech": Operation(
        "Speak a text, as OpenAI's interface has it",
        {200: Good("the sound", SOUNDS | {SSE: None}, (*JOB_HEADERS, "X-Request-Id"))},
        (409, 429),
        schemas.V1Body,
        example={"model": "tts-1", "voice": "nova", "input": "Good evening."},
    ),
    "openai.list_models": Operation(
        "Models, as OpenAI lists them", {200: Good("models", {JSON: answers.ModelList})}
    ),
    "openai.get_model": Operation(
        "One of them", {200: Good("the model", {JSON: answers.ListedModel})}, (404,)
    ),
    "openai.list_speech_models": Operation(
        "Models, as Open WebUI asks for them", {200: Good("models", {JSON: answers.SpeechModels})}
    ),
    "openai.list_voices": Operation(
        "Voices, under our names and OpenAI's", {200: Good("voices", {JSON: answers.SpeechVoices})}
    ),
    "openapi.document": Operation(
        "This document", {200: Good("OpenAPI 3.1", {JSON: None})}, needs_redis=False
    ),
}
