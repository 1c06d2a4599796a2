"""The sound of a job as an answer: from disk a block at a time, never the file as a whole. And what
is told of the job beside it.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO

from flask import Response, request
from pybase64 import b64encode
from werkzeug.wsgi import wrap_file

from app.encoding import MEDIA_TYPES, OPUS_RATE, SPOOL_BYTES, encoder
from app.errors import Problem
from supertonic.audio import BYTES_PER_SAMPLE, WAV_HEADER_BYTES, wav_header
from tasks.jobsound import blocks
from tasks.messages import Job

# Base64 of whole blocks can be joined: their size is a multiple of three.
BASE64_BLOCK = 3 << 16


def whole_file(
    file: BinaryIO, size: int, etag: str, mimetype: str = MEDIA_TYPES["wav"]
) -> Response:
    """A finished file, or the range of it that was asked for.

    Problem 412 when an If-Match names another one.
    """
    response = Response(
        wrap_file(request.environ, file), mimetype=mimetype, direct_passthrough=True
    )
    response.call_on_close(file.close)
    response.content_length = size
    response.set_etag(etag)
    wanted = dict(request.environ)
    if wanted.get("HTTP_IF_MATCH", "").strip() == "*":
        del wanted["HTTP_IF_MATCH"]  # any file there is, and here is one
    if text := _range(size):
        wanted["HTTP_RANGE"] = text
    else:
        wanted.pop("HTTP_RANGE", None)
    response.make_conditional(wanted, accept_ranges=True, complete_length=size)
    if response.status_code == 412:
        file.close()
        raise Problem(412, f'If-Match names another file; this one is "{etag}".')
    return response


def _range(size: int) -> str:
    """The range that was asked for, as werkzeug takes it. What we do not offer, another unit or
    several at once, counts as not asked; the last so many bytes are all, where there are fewer.
    """
    text, wanted = request.headers.get("Range", ""), request.range
    if wanted is None:
        return text if text.startswith("bytes=") else ""
    if wanted.units != "bytes" or len(wanted.ranges) != 1:
        return ""
    start, _ = wanted.ranges[0]
    return "bytes=0-" if size and start < -size else text


def collected(parts: Iterable[bytes], sample_rate: int) -> tuple[BinaryIO, int]:
    """PCM as a WAV file that lies on disk where it is large, and its size in bytes."""
    file: Any = SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115
    file.write(bytes(WAV_HEADER_BYTES))
    for part in parts:
        file.write(part)
    size = file.tell()
    file.seek(0)
    file.write(wav_header(samples_in(size), sample_rate))
    file.seek(0)
    return file, size


def samples_in(size: int) -> int:
    """How many samples a WAV of so many bytes has."""
    return (size - WAV_HEADER_BYTES) // BYTES_PER_SAMPLE


def first_samples(file: BinaryIO, n_samples: int, sample_rate: int) -> Response:
    """A WAV of the first ``n_samples`` of a file, which may be growing."""

    def body() -> Iterator[bytes]:
        yield wav_header(n_samples, sample_rate)
        file.seek(WAV_HEADER_BYTES)
        yield from blocks(file, BYTES_PER_SAMPLE * n_samples)

    response = Response(body(), mimetype="audio/wav")
    response.call_on_close(file.close)
    response.content_length = WAV_HEADER_BYTES + BYTES_PER_SAMPLE * n_samples
    return response


def encoded(file: BinaryIO, n_samples: int, sample_rate: int, kind: str) -> Response:
    """The first ``n_samples`` of a job's sound in another format, encoded while they are sent."""
    rate = OPUS_RATE if kind == "opus" else sample_rate

    def body() -> Iterator[bytes]:
        sound = encoder(kind, sample_rate, rate)
        file.seek(WAV_HEADER_BYTES)
        for block in blocks(file, BYTES_PER_SAMPLE * n_samples):
            if part := sound.encode(block):
                yield part
        yield from filter(None, sound.finish())

    response = Response(body(), mimetype=MEDIA_TYPES[kind])
    response.call_on_close(file.close)
    return response


def json_with_sound(
    job: Job, file: BinaryIO, size: int, facts: list[dict[str, float | int]]
) -> Response:
    """A JSON object with the whole file as ``audio_base64`` in front; ``facts`` are the chunks'."""
    rest = json.dumps(_figures(job, size, facts), ensure_ascii=False).removeprefix("{").encode()
    head = b'{"audio_base64": "'

    def body() -> Iterator[bytes]:
        yield head
        for block in blocks(file, size, BASE64_BLOCK):
            yield b64encode(block)
        yield b'", ' + rest

    response = Response(body(), mimetype="application/json")
    response.call_on_close(file.close)
    response.content_length = len(head) + 4 * ((size + 2) // 3) + 3 + len(rest)
    return response


def _figures(job: Job, size: int, facts: list[dict[str, float | int]]) -> dict[str, Any]:
    """The answer of the original server beside the WAV, and what it lacked.

    ``inference_time_ms`` adds up what the engine spent on the batches of this request's chunks,
    ``queue_time_ms`` is how long the first chunk waited, ``batch_size`` the largest batch.
    """
    return {
        "duration_seconds": round(samples_in(size) / job.sample_rate, 4),
        "sample_rate": job.sample_rate,
        "inference_time_ms": round(sum(f.get("inference_time_ms", 0) for f in facts), 3),
        "batch_size": max((f.get("batch_size", 0) for f in facts), default=0),
        "queue_time_ms": facts[0].get("queue_time_ms", 0) if facts else 0,
        "seed": job.request.seed,
        "warnings": list(job.warnings),
        "job_id": job.job_id,
        "chunks": job.count,
    }


def tell_job(response: Response, job: Job, sample_rate: int | None = None) -> Response:
    """The answer, with headers that tell of the job what its sound cannot. ``sample_rate`` is that
    of the sound where it is not the job's.
    """
    response.headers["X-Job-Id"] = job.job_id
    response.headers["X-Seed"] = str(job.request.seed)
    response.headers["X-Sample-Rate"] = str(sample_rate or job.sample_rate)
    return response


def tell_warnings(response: Response, warnings: Sequence[str]) -> None:
    """What the speaker should know, in a header: all but ASCII by its number, as in U+00E5."""
    text = "; ".join(warnings)
    response.headers["X-Warnings"] = "".join(
        char if char.isascii() else f"U+{ord(char):04X}" for char in text
    )
