"""The interface that clients of OpenAI speak: ``POST /v1/audio/speech`` and the lists beside it.

The same jobs as everywhere, under other names; docs/openai.md says which is which. Errors are in
OpenAI's envelope (``app/errors.py``), and fields nobody knows are ignored as there.
"""

import errno
import json
import logging
import math
import secrets
from collections.abc import Iterator
from itertools import chain
from typing import Any

from flask import Blueprint, Response, jsonify, request
from pybase64 import b64encode

from app.access import owner_of
from app.encoding import MEDIA_TYPES, OPUS_RATE, OPUS_RATES, PCM_RATE, Encoder, WholeWav, encoder
from app.errors import Problem
from app.fields import SPEED
from app.follow import Spoken
from app.job_sound import tell_job, tell_warnings
from app.jobs import Speech, speech
from app.offer import voices_of
from app.outcome import until_done
from app.reading import read_json, validate
from app.schemas import SpeechBody, V1Body
from app.stream import cancelling, unbuffered
from supertonic.voices import VOICES
from tasks.logs import facts
from tasks.messages import Job, Kind, Piece

logger = logging.getLogger(__name__)

openai_api = Blueprint("openai", __name__)

# Voices that clients offer without asking which there are.
VOICE_NAMES = {
    "alloy": "F1",
    "ash": "M1",
    "ballad": "M2",
    "cedar": "M2",
    "coral": "F2",
    "echo": "M3",
    "fable": "M4",
    "marin": "F1",
    "nova": "F3",
    "onyx": "M5",
    "sage": "F4",
    "shimmer": "F5",
    "verse": "M1",
}
OWN_NAMES = VOICE_NAMES | {name.lower(): name for name in VOICES}
# There is one model; these names choose how many steps it takes, any other takes the fewest.
MODEL_STEPS = {"tts-1": 2, "tts-1-hd": 5, "gpt-4o-mini-tts": 2}
CREATED = 1_767_225_600
# Of sound in one event: line readers stop at 64 KB, or 512.
EVENT_BYTES = 24_576


@openai_api.post("/v1/audio/speech")
def create_speech() -> Response:
    body = validate(V1Body, read_json(request))
    job, pieces = _submit(body)
    usual = {"pcm": PCM_RATE, "opus": OPUS_RATE}.get(body.response_format, job.sample_rate)
    rate = body.sample_rate or usual
    if body.response_format == "opus" and rate not in OPUS_RATES:
        rate = OPUS_RATE
    is_whole = body.response_format == "wav" and job.count == 1
    sound = encoder(body.response_format, job.sample_rate, rate)
    if is_whole:
        sound = WholeWav(job.sample_rate, rate)
    parts = cancelling(speech(), job, _sound(speech(), job, pieces, sound))
    # Until the first is there, a failure can still be told by the status.
    first = next(parts, b"")
    parts = chain([first], parts)
    if body.stream_format == "sse":
        response = Response(
            _events(speech(), job, parts), content_type="text/event-stream; charset=utf-8"
        )
    else:
        whole = _broken_off_quietly(job, parts)
        response = Response(whole, content_type=MEDIA_TYPES[body.response_format])
        if is_whole:
            response.content_length = len(first)
    tell_warnings(response, [*_warnings(body), *job.warnings])
    return tell_job(unbuffered(response), job, sound.rate)


def _submit(body: V1Body) -> tuple[Job, list[Piece]]:
    native = SpeechBody(
        text=body.input,
        voice=_own_voice(body.voice),
        language=body.language,
        steps=body.steps or MODEL_STEPS.get(body.model, MODEL_STEPS["tts-1"]),
        speed=_speed(body),
        seed=body.seed,
        pause_s=body.pause_s,
        lexicon=body.lexicon,
    )
    try:
        is_streamed = body.response_format != "flac"
        return speech().submit(native, Kind.STREAM, owner_of(request), is_streamed)
    except Problem as problem:
        for error in problem.errors:
            if error["field"] == "text":
                error["field"] = "input"
                problem.detail = problem.detail.replace("text:", "input:", 1)
            elif error["field"] == "voice":
                problem.detail += f". OpenAI's names are known too: {', '.join(VOICE_NAMES)}"
        raise


def _speed(body: V1Body) -> float:
    """OpenAI's range is wider; the nearest speed is better than none."""
    return min(max(body.speed, SPEED[0]), SPEED[1])


def _warnings(body: V1Body) -> list[str]:
    speed = _speed(body)
    return [f"speed {body.speed:g} is out of reach, it is {speed:g}"] if speed != body.speed else []


def _own_voice(voice: str) -> str:
    """Our name for one of OpenAI's, also within a mixture."""

    def own(part: str) -> str:
        name, *weight = part.partition("(")
        return OWN_NAMES.get(name.strip().lower(), name) + "".join(weight)

    return "+".join(own(part) for part in voice.split("+"))


def _sound(service: Speech, job: Job, pieces: list[Piece], sound: Encoder) -> Iterator[bytes]:
    """The encoded sound in order.

    Raises:
        Problem: it cannot be completed; what was sent is then cut off, so that nobody takes it
            for the whole.
    """
    for item in until_done(service, job, pieces, encoder=sound):
        if isinstance(item, Spoken) and item.pcm:
            yield item.pcm


def _broken_off_quietly(job: Job, parts: Iterator[bytes]) -> Iterator[bytes]:
    """The parts; when they cannot go on the connection breaks, as if it were reset: what happened
    is in the log already, or somebody wanted it.
    """
    try:
        yield from parts
    except Problem as problem:
        logger.info("broken off: %s", problem.detail, extra=facts(job_id=job.job_id))
        raise ConnectionResetError(errno.ECONNRESET, problem.detail) from problem


def _events(service: Speech, job: Job, parts: Iterator[bytes]) -> Iterator[bytes]:
    """OpenAI's events. There are no tokens here: characters go in, seconds of sound come out."""
    try:
        for part in parts:
            for start in range(0, len(part), EVENT_BYTES):
                delta = b64encode(part[start : start + EVENT_BYTES]).decode("ascii")
                yield _event({"type": "speech.audio.delta", "audio": delta})
    except Problem as problem:
        yield _event({"type": "error", **problem.envelope()})
        return
    spent = {
        "input_tokens": job.request.characters,
        "output_tokens": math.ceil(_seconds(service, job)),
    }
    usage = spent | {"total_tokens": sum(spent.values())}
    yield _event({"type": "speech.audio.done", "usage": usage})


def _seconds(service: Speech, job: Job) -> float:
    ended = service.store.job(job.job_id) or job
    return (ended.samples + ended.pause_samples) / ended.sample_rate


def _event(body: dict[str, Any]) -> bytes:
    return f"event: {body['type']}\ndata: {json.dumps(body)}\n\n".encode()


# -- lists -----------------------------------------------------------------------------------


@openai_api.get("/v1/models")
def list_models() -> Response:
    return jsonify(object="list", data=[_model(name) for name in _model_names()])


@openai_api.get("/v1/models/<name>")
def get_model(name: str) -> Response:
    if name not in _model_names():
        raise Problem(404, f"There is no model {name}; there are {', '.join(_model_names())}.")
    return jsonify(_model(name))


@openai_api.get("/v1/audio/models")
def list_speech_models() -> Response:
    return jsonify(models=[{"id": name} for name in _model_names()])


@openai_api.get("/v1/audio/voices")
def list_voices() -> Response:
    own = voices_of(speech().workers())
    names = own + [name for name, voice in VOICE_NAMES.items() if voice in own]
    return jsonify(voices=[{"id": name, "name": name} for name in names])


def _model_names() -> list[str]:
    return [*MODEL_STEPS, *sorted({worker.model for worker in speech().workers()})]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "supertonic-server"}


@openai_api.after_app_request
def name_request(response: Response) -> Response:
    if not request.path.startswith("/v1/"):
        return response
    job_id = response.headers.get("X-Job-Id")
    response.headers.setdefault("X-Request-Id", job_id or f"req_{secrets.token_hex(12)}")
    return response
