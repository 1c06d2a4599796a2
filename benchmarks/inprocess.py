"""The rival: one asyncio process that batches by itself and has no queue, for comparison.

``uvicorn benchmarks.inprocess:app`` answers ``POST /synthesize/stream`` with the same events as
the service: same chunks, same engine (BENCH_ENGINE), same conversion to PCM, WAV and base64. It is
what one writes first with FastAPI, without FastAPI's own layer over Starlette. It cannot survive
a crash, spread over machines, cancel, resume or put anyone first; that is what the service pays
for. Batches start at once with whatever waits, so nobody here waits for company.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from benchmarks.engines import make_engine
from supertonic.audio import to_pcm16, wav_bytes
from supertonic.text import split_text
from supertonic.utterance import Utterance

MAX_BATCH = 32
HEADER_BYTES = 44  # of a WAV file


class Batcher:
    """Waiting utterances and the one thread that speaks them."""

    def __init__(self) -> None:
        self.engine = make_engine()
        self.waiting: asyncio.Queue[tuple[Utterance, asyncio.Future[bytes]]] = asyncio.Queue()

    def add(self, utterance: Utterance) -> "asyncio.Future[bytes]":
        """The utterance's PCM, some time later."""
        spoken = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((utterance, spoken))
        return spoken

    async def run(self) -> None:
        while True:
            batch = [await self.waiting.get()]
            while len(batch) < MAX_BATCH and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            sounds = await asyncio.to_thread(self._speak, [utterance for utterance, _ in batch])
            for (_, spoken), pcm in zip(batch, sounds, strict=True):
                if not spoken.cancelled():
                    spoken.set_result(pcm)

    def _speak(self, utterances: list[Utterance]) -> list[bytes]:
        return [to_pcm16(audio.samples) for audio in self.engine.synthesize(utterances)]


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    app.state.batcher = Batcher()
    running = asyncio.create_task(app.state.batcher.run())
    yield
    running.cancel()


async def stream(request: Request) -> StreamingResponse:
    body = await request.json()
    return StreamingResponse(
        events(request.app.state.batcher, body), media_type="text/event-stream"
    )


async def events(batcher: Batcher, body: dict[str, Any]) -> AsyncIterator[str]:
    chunks = split_text(body["text"], "en")
    spoken = [
        batcher.add(Utterance(chunk.text, "en", "M1", 2, 1.05, 0, index))
        for index, chunk in enumerate(chunks)
    ]
    rate, total = batcher.engine.sample_rate, len(chunks)
    yield sse("accepted", {"job_id": "", "total": total, "sample_rate": rate}, 0)
    for index, (chunk, pcm) in enumerate(zip(chunks, spoken, strict=True)):
        wav = wav_bytes(await pcm, rate)
        n_samples = (len(wav) - HEADER_BYTES) // 2
        data = {
            "index": index,
            "total": total,
            "duration_seconds": round(n_samples / rate, 4),
            "n_samples": n_samples,
            "sample_rate": rate,
            "text": chunk.text,
            "audio_base64": base64.b64encode(wav).decode("ascii"),
        }
        yield sse("chunk", data, index + 1)
    yield sse("done", {"total_chunks": total}, total + 1)


def sse(event: str, data: dict[str, Any], event_id: int) -> str:
    return f"id: {event_id}\nevent: {event}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


app = Starlette(routes=[Route("/synthesize/stream", stream, methods=["POST"])], lifespan=lifespan)
