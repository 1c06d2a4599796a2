"""A small reader of Server-Sent Events, and of the sound inside them."""

import base64
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import requests
import soundfile

from supertonic.config import ModelConfig
from supertonic.loading import BUILTIN

BUILTIN_CONFIG = ModelConfig.load(BUILTIN / "config.json")
SAMPLE_RATE = BUILTIN_CONFIG.sample_rate


@dataclass(frozen=True)
class Received:
    id: str
    event: str
    data: dict[str, Any]


def read_events(response: requests.Response) -> Iterator[Received]:
    """Events of a streaming response as they arrive, comments left out."""
    buffer = b""
    # None: whatever has arrived. A number would wait for that many bytes, or read one by one.
    for data in response.iter_content(None):
        whole, end, rest = (buffer + data).rpartition(b"\n\n")
        buffer = rest
        yield from parse_events(whole + end)


def parse_events(data: bytes) -> Iterator[Received]:
    """Events that are whole in ``data``; what follows the last of them is left out."""
    for block in data.split(b"\n\n")[:-1]:
        lines = [line for line in block.decode().split("\n") if not line.startswith(":")]
        fields = dict(line.split(": ", 1) for line in lines)
        if fields:
            yield Received(fields.get("id", ""), fields["event"], json.loads(fields["data"]))


def decoded(sound: bytes) -> tuple[np.ndarray, int]:
    """Samples of a file in any format, int16 (N,), and their rate."""
    with suppress(soundfile.LibsndfileError):
        return soundfile.read(io.BytesIO(sound), dtype="int16")
    with av.open(io.BytesIO(sound)) as file:
        samples = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
        return (samples * 32_767).astype(np.int16), file.streams.audio[0].rate


def samples_of(wav: bytes, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Decode a WAV with an independent library: int16 samples (N,)."""
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="int16")
    assert rate == sample_rate
    return samples


def joined(events: Iterable[Received]) -> np.ndarray:
    """All chunks' samples, in the order received."""
    parts = [
        samples_of(base64.b64decode(event.data["audio_base64"]))
        for event in events
        if event.event == "chunk"
    ]
    return np.concatenate(parts)
