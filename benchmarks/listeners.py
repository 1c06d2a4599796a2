"""Clients that cost little, because they run on the cores of the server they measure.

A listener posts a text and reads its Server-Sent Events in large blocks, only counting them.
Nothing is decoded; the test suite does that.
"""

import json
import re
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

CHUNK = b"event: chunk"
DONE = b"event: done"
END = b"0\r\n\r\n"  # of a response in HTTP's chunked coding
KEEP = len(CHUNK) - 1
JOB_ID = re.compile(rb"(?i)x-job-id: (\w+)")
TIMEOUT_S = 60.0


class BrokenStream(Exception):
    """A stream ended with an error, or short of chunks."""


class Listener:
    """One keep-alive connection, one stream at a time."""

    def __init__(self, port: int, wish: Mapping[str, object], n_chunks: int) -> None:
        body = json.dumps(wish).encode()
        self.request = (
            b"POST /synthesize/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        ) + body
        self.n_chunks = n_chunks
        self.sock = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self.buffer = bytearray(1 << 18)
        self._reset()

    def ask(self) -> None:
        self._reset()
        self.sock.sendall(self.request)

    def _reset(self) -> None:
        self.chunks = 0
        self.is_done = False
        self.job_id = ""
        self.tail = b""

    def read(self) -> int:
        """Read what has arrived; how many chunks have begun in it.

        Raises BrokenStream, OSError.
        """
        n = self.sock.recv_into(self.buffer)
        if n == 0:
            raise BrokenStream("the connection was closed")
        if not self.tail and not self.buffer.startswith(b"HTTP/1.1 200"):
            raise BrokenStream(bytes(self.buffer[:n][:600]).decode(errors="replace"))
        if not self.tail and (found := JOB_ID.search(self.buffer, 0, n)):
            self.job_id = found[1].decode()
        # What begins in one block and ends in the next lies in this seam.
        seam = self.tail[-KEEP:] + bytes(self.buffer[: min(n, KEEP)])
        begun = self.buffer.count(CHUNK, 0, n) + seam.count(CHUNK)
        self.chunks += begun
        self.is_done = self.is_done or DONE in seam or self.buffer.find(DONE, 0, n) >= 0
        self.tail = (self.tail + bytes(self.buffer[max(0, n - 16) : n]))[-16:]
        if self.has_ended and self.chunks != self.n_chunks:
            raise BrokenStream(f"{self.chunks} chunks instead of {self.n_chunks}")
        return begun

    @property
    def has_whole_chunk(self) -> bool:
        """The first chunk's event has arrived to its last byte."""
        return self.chunks > 0 and (self.is_done or self.tail.endswith(b"\n\n\r\n"))

    @property
    def has_ended(self) -> bool:
        return self.is_done and self.tail.endswith(END)

    def time_one(self) -> tuple[float, float]:
        """Seconds from the request to the first whole chunk, and to the end of the stream."""
        started = time.perf_counter()
        self.ask()
        first_s = 0.0
        while not self.has_ended:
            self.read()
            if not first_s and self.has_whole_chunk:
                first_s = time.perf_counter() - started
        return first_s, time.perf_counter() - started

    def close(self) -> None:
        self.sock.close()


@dataclass
class Load:
    """What a number of listeners got."""

    chunks: int = 0
    streams: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    @property
    def chunks_per_s(self) -> float:
        return self.chunks / self.seconds


def listen_together(make: Callable[[], Listener], n_streams: int, seconds: float) -> Load:
    """Keep ``n_streams`` streams open for a while, each followed by the next on its connection.

    Chunks are counted from the first request on; a broken stream is counted and replaced.
    """
    load = Load()
    selector = selectors.DefaultSelector()
    started = time.perf_counter()

    def join() -> None:
        listener = make()
        selector.register(listener.sock, selectors.EVENT_READ, listener)
        listener.ask()

    def leave(listener: Listener) -> None:
        selector.unregister(listener.sock)
        listener.close()

    for _ in range(n_streams):
        join()
    while (now := time.perf_counter()) < started + seconds:
        for key, _ in selector.select(timeout=1.0):
            listener: Listener = key.data
            try:
                load.chunks += listener.read()
                if listener.has_ended:
                    load.streams += 1
                    listener.ask()
            except (BrokenStream, OSError) as error:
                load.errors.append(str(error))
                leave(listener)
                if len(load.errors) > 100:
                    raise RuntimeError(f"more than 100 streams broke: {error}") from error
                join()
    load.seconds = now - started
    for key in list(selector.get_map().values()):
        leave(key.data)
    selector.close()
    return load
