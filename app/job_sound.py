"""The sound of a job as an answer: from disk a block at a time, never the file as a whole."""

import json
from collections.abc import Iterable, Iterator
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO

from flask import Response, request
from pybase64 import b64encode
from werkzeug.wsgi import wrap_file

from app.encoding import MEDIA_TYPES, OPUS_RATE, SPOOL_BYTES, encoder
from app.errors import Problem
from supertonic.audio import BYTES_PER_SAMPLE, WAV_HEADER_BYTES, wav_header
from tasks.jobsound import blocks

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


def json_with_sound(answer: dict[str, Any], file: BinaryIO, size: int) -> Response:
    """A JSON object with the whole file as ``audio_base64`` in front."""
    rest = json.dumps(answer, ensure_ascii=False).removeprefix("{").encode()
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
