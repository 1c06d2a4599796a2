"""A client that costs little: hundreds of streams in one process beside the server it measures.

It takes HTTP's chunked coding and the event stream apart as bytes arrive, notes when each event
was there to its last byte, and throws the sound away. What it understands of an event is its name
and, near its beginning, how much sound it holds.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.playback import Playback

# An event's facts stand before its sound; text among them may be long.
HEAD_BYTES = 8192
STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
RETRY = re.compile(rb"(?i)\r\nretry-after: (\d+)")
NAME = re.compile(rb"^event: (\w+)", re.MULTILINE)
SAMPLES = re.compile(rb'"n_samples": ?(\d+)')
RATE = re.compile(rb'"sample_rate": ?(\d+)')
TOTAL = re.compile(rb'"total": ?(\d+)')
NOT_LAST = re.compile(rb'"is_last_slice": ?false')
SILENCE_LIMIT_S = 60.0


class Broken(Exception):
    """What came is not a whole stream."""


class Unchunked:
    """Takes the chunked coding off a response's body, piece by piece."""

    def __init__(self) -> None:
        self.is_over = False
        self._line = b""  # of a size line that is not whole yet
        self._left = 0  # bytes of the present chunk that are still to come
        self._skip = 0  # of the line end behind it

    def feed(self, data: bytes) -> list[memoryview]:
        """The body's bytes in ``data``. Raises Broken."""
        body, view, at = [], memoryview(data), 0
        while at < len(data) and not self.is_over:
            if self._left:
                taken = min(self._left, len(data) - at)
                body.append(view[at : at + taken])
                self._left -= taken
                self._skip = 0 if self._left else 2
                at += taken
            elif self._skip:
                taken = min(self._skip, len(data) - at)
                self._skip -= taken
                at += taken
            else:
                end = data.find(b"\n", at)
                if end < 0:
                    self._line += data[at:]
                    return body
                line, self._line, at = self._line + data[at : end + 1], b"", end + 1
                self._left = _size(line)
                self.is_over = self._left == 0
        return body


def _size(line: bytes) -> int:
    try:
        return int(line.split(b";")[0], 16)
    except ValueError:
        raise Broken(f"no size of a chunk: {line[:40]!r}") from None


class Events:
    """Cuts an event stream at its empty lines and keeps the beginning of each event."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._ends_in_newline = False

    def feed(self, data: bytes) -> list[bytes]:
        """Beginnings of the events that are whole now."""
        done, start = [], 0
        if self._ends_in_newline and data.startswith(b"\n"):
            done.append(self._take())
            start = 1
        while (end := data.find(b"\n\n", start)) >= 0:
            self._keep(data[start : min(end, start + HEAD_BYTES)])
            done.append(self._take())
            start = end + 2
        self._keep(data[start : start + HEAD_BYTES])
        self._ends_in_newline = len(data) > start and data.endswith(b"\n")
        return done

    def _keep(self, data: bytes) -> None:
        self._head += data[: max(0, HEAD_BYTES - len(self._head))]

    def _take(self) -> bytes:
        # A line end that stood last in one piece is half of the empty line.
        head = bytes(self._head).rstrip(b"\n")
        self._head.clear()
        return head


@dataclass
class Heard:
    """What one listener got. Times are those of the event loop's clock, in seconds."""

    label: str
    intended_at: float
    playback: Playback = field(default_factory=Playback)
    ended_at: float = 0.0
    total: int = 0  # chunks announced
    whole: int = 0  # chunks that are here to their last slice
    status: int = 0
    error: str = ""
    retry_after_s: float = 0.0

    @property
    def first_s(self) -> float | None:
        """From the moment it was meant to ask to its first sound."""
        first_at = self.playback.first_at
        return None if first_at is None else first_at - self.intended_at

    @property
    def is_refused(self) -> bool:
        """Turned away with a reason, before anything was promised."""
        return self.status in (429, 503)

    @property
    def worst_s(self) -> float | None:
        return None if self.error else self.playback.worst_s


class Stream(asyncio.Protocol):
    """One connection, one request, one stream of events."""

    def __init__(self, request: bytes, heard: Heard) -> None:
        self.heard = heard
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self.loop.create_future()
        self.transport: asyncio.Transport | None = None
        self._request = request
        self._head = b""
        self._body: Unchunked | None = None
        self._events = Events()
        self._is_done = False
        self.heard_at = self.loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self.loop.time()
        try:
            if self._body is None:
                data = self._read_head(data)
            if self._body is not None:
                for part in self._body.feed(data):
                    for event in self._events.feed(bytes(part)):
                        self._event(event)
                if self._body.is_over:
                    self._close("" if self._is_done else "the stream ended without done")
        except Broken as error:
            self._close(str(error))

    def _read_head(self, data: bytes) -> bytes:
        self._head += data
        head, found, rest = self._head.partition(b"\r\n\r\n")
        if not found:
            return b""
        status = STATUS.match(head)
        self.heard.status = int(status[1]) if status else 0
        retry = RETRY.search(head)
        self.heard.retry_after_s = float(retry[1]) if retry else 0.0
        if self.heard.status != 200:
            raise Broken(f"HTTP {self.heard.status}: {rest[:300].decode(errors='replace')}")
        self._body = Unchunked()
        return rest

    def _event(self, event: bytes) -> None:
        name = NAME.search(event)
        match name and name[1]:
            case b"accepted":
                total = TOTAL.search(event)
                self.heard.total = int(total[1]) if total else 0
            case b"chunk":
                samples, rate = SAMPLES.search(event), RATE.search(event)
                if samples is None or rate is None:
                    raise Broken(f"a chunk without length: {event[:200]!r}")
                self.heard.playback.arrive(self.heard_at, int(samples[1]) / int(rate[1]))
                self.heard.whole += NOT_LAST.search(event) is None
            case b"done":
                self._is_done = True
            case b"error" | b"cancelled" | b"gap":
                raise Broken(event[:300].decode(errors="replace"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._close(f"the connection was lost: {exc or 'closed by the server'}")

    def _close(self, error: str) -> None:
        if self.ended.done():
            return
        heard = self.heard
        if not error and heard.whole != heard.total:
            error = f"{heard.whole} chunks instead of {heard.total}"
        heard.error = error
        heard.ended_at = self.loop.time()
        self.ended.set_result(None)
        if self.transport is not None:
            self.transport.close()


def post(body: Mapping[str, object], path: str = "/synthesize/stream") -> bytes:
    """A whole HTTP request."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def listen(
    port: int,
    request: bytes,
    *,
    label: str = "",
    intended_at: float | None = None,
    limit_s: float = SILENCE_LIMIT_S,
) -> Heard:
    """Ask on a connection of its own and follow the stream to its end.

    ``limit_s``: a stream that says nothing for so long has failed. Failing is told in what comes
    back, never raised.
    """
    loop = asyncio.get_running_loop()
    heard = Heard(label, loop.time() if intended_at is None else intended_at)
    try:
        connecting = loop.create_connection(lambda: Stream(request, heard), "127.0.0.1", port)
        _, stream = await asyncio.wait_for(connecting, limit_s)
    except (OSError, TimeoutError) as error:
        heard.error, heard.ended_at = f"cannot connect: {error!r}", loop.time()
        return heard
    try:
        while not stream.ended.done():
            left_s = stream.heard_at + limit_s - loop.time()
            if left_s <= 0:
                stream._close(f"silent for {limit_s:g} s")
            await asyncio.wait([stream.ended], timeout=max(0.0, left_s))
    finally:
        stream._close("given up")
    return heard
