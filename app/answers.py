"""What clients get, as pydantic models: the OpenAPI document is made from them.

Routes build plain dictionaries; tests hold their answers against these models, no field more and
none less. Times are seconds since 1970, durations seconds of sound unless the name says otherwise.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.messages import Kind, State


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FieldError(Answer):
    field: str
    value: bool | int | float | str | None
    detail: str


class Problem(BaseModel):
    """RFC 9457. Some carry more: the job's id, its state."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] | None = None


# -- speech ----------------------------------------------------------------------------------


class SpeechAnswer(Answer):
    """The whole sound as a WAV file in base64. ``inference_time_ms`` adds up its batches'."""

    audio_base64: str
    duration_seconds: float
    sample_rate: int
    inference_time_ms: float
    batch_size: int
    queue_time_ms: float
    seed: int
    warnings: list[str]
    job_id: str
    chunks: int


class Accepted(Answer):
    """Event ``accepted``, the first of a stream."""

    job_id: str
    total: int
    sample_rate: int
    seed: int
    warnings: list[str]


class ChunkEvent(Answer):
    """Event ``chunk``; ``audio_base64`` is a complete WAV, absent with ``audio=false``.

    Of a chunk in slices only the last brings the timings.
    """

    index: int
    total: int
    duration_seconds: float
    n_samples: int
    sample_rate: int
    text: str
    start_sample: int | None = None
    is_last_slice: bool | None = None
    batch_size: int | None = None
    queue_time_ms: float | None = None
    inference_time_ms: float | None = None
    cached: bool | None = None
    audio_base64: str | None = None


class GapEvent(Answer):
    """Event ``gap``: the audio of chunk ``index`` is no longer kept."""

    index: int
    detail: str


class DoneEvent(Answer):
    """Event ``done``, the good end."""

    total_chunks: int
    duration_seconds: float
    job_id: str


class JobEvent(Answer):
    """Events ``cancelled``, ``paused`` and ``resumed``; the last two have no id."""

    job_id: str


# Event ``error`` carries a Problem.
EVENTS: dict[str, type[BaseModel]] = {
    "accepted": Accepted,
    "chunk": ChunkEvent,
    "gap": GapEvent,
    "done": DoneEvent,
    "cancelled": JobEvent,
    "paused": JobEvent,
    "resumed": JobEvent,
    "error": Problem,
}


# -- jobs ------------------------------------------------------------------------------------


class JobLinks(BaseModel):
    self_: str = Field(alias="self")
    events: str
    audio: str
    captions: str
    chapters: str
    book: str
    model_config = ConfigDict(extra="forbid")


class WebhookDelivery(Answer):
    url: str
    state: Literal["waiting", "delivered", "failed"]
    attempts: int
    next_attempt_at: float | None
    last_status: int | None
    last_error: str | None
    delivered_at: float | None


class JobAnswer(Answer):
    job_id: str
    kind: Kind
    state: State
    progress: float = Field(ge=0, le=1)
    chunks_total: int
    chunks_done: int
    duration_seconds: float
    eta_seconds: float | None
    queue_position: int | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    expires_at: float | None
    error: str | None
    seed: int
    voice: str
    language: str
    steps: int
    speed: float
    pause_s: float
    text_preview: str
    characters: int
    warnings: list[str]
    webhook: WebhookDelivery | None
    links: JobLinks


class ListedChapter(Answer):
    """Times are ``null`` for what is not spoken yet."""

    title: str
    chunk_index: int
    start_seconds: float | None
    end_seconds: float | None


class Chapters(Answer):
    job_id: str
    title: str
    author: str
    chapters: list[ListedChapter]


class DeletedJob(JobAnswer):
    """``deleted`` is there when the job had ended and has been removed."""

    deleted: Literal[True] | None = None


class JobList(Answer):
    jobs: list[JobAnswer]
    next_cursor: str | None


# -- voices, health, figures -----------------------------------------------------------------


class Model(Answer):
    name: str
    is_builtin: bool
    description: str
    sample_rate: int
    fingerprint: str
    precision: str


class Worker(Answer):
    name: str
    device: str
    precision: str
    model: str
    waiting: int
    chunks: int
    audio_seconds_per_second: float
    started_at: float


class BatchLimits(Answer):
    max_batch_size: int
    max_wait_time_ms: float


class WorkerLimits(BatchLimits):
    name: str


class Health(Answer):
    status: Literal["ok", "no worker"]
    service: str
    version: str
    model: Model | None
    voices: list[str]
    languages: list[str]
    device: str | None
    workers: list[Worker]
    batch: BatchLimits
    links: dict[str, str]


class Voice(Answer):
    id: str
    name: str
    gender: Literal["female", "male"]


class Language(Answer):
    code: str
    name: str


class Span(Answer):
    min: float
    max: float


class Limits(Answer):
    steps: Span
    speed: Span
    pause_s: Span
    text_chars: int
    file_bytes: int


class Defaults(Answer):
    voice: str
    language: str
    steps: int
    speed: float
    pause_s: float


class Voices(Answer):
    voices: list[Voice]
    languages: list[Language]
    defaults: Defaults
    limits: Limits
    model: Model | None


class Alive(Answer):
    status: Literal["ok"]


class Ready(Answer):
    status: Literal["ready"]
    workers: int
    model: str


class Figures(Answer):
    total_requests: int
    requests_done: int
    requests_failed: int
    requests_cancelled: int
    total_chunks: int
    total_audio_seconds: float
    average_batch_size: float
    average_queue_time_ms: float
    audio_seconds_per_busy_second: float
    queue_sizes: dict[str, int]
    dead_letters: int
    workers: int
    device_memory_bytes: int


class DeadLetter(Answer):
    """A queue message that nobody could use."""

    at: float
    queue: str
    reason: str
    message: Any


class DeadLetters(Answer):
    dead_letters: list[DeadLetter]


class BatchAnswer(Answer):
    batch: BatchLimits
    workers: list[WorkerLimits]


# -- OpenAI's --------------------------------------------------------------------------------


class ErrorFacts(Answer):
    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str | None


class ErrorEnvelope(Answer):
    error: ErrorFacts


class ListedModel(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Answer):
    object: Literal["list"]
    data: list[ListedModel]


class SpeechModel(Answer):
    id: str


class SpeechModels(Answer):
    models: list[SpeechModel]


class SpeechVoice(Answer):
    id: str
    name: str


class SpeechVoices(Answer):
    voices: list[SpeechVoice]
