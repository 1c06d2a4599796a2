"""A server that sends events at set moments, to hold the benchmarks' listeners to account."""

import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """After ``wait_s``, send ``data``; ``pieces`` above 1 cut it and send it piece by piece."""

    wait_s: float
    data: bytes
    pieces: int = 1


def head() -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(name: str, data: str) -> bytes:
    return f"id: 1\nevent: {name}\ndata: {data}\n\n".encode()


def accepted(total: int) -> bytes:
    return event("accepted", f'{{"job_id": "x", "total": {total}, "sample_rate": 1000}}')


def chunk(index: int, seconds: float, size: int = 40_000) -> bytes:
    """An event with so many seconds of sound and so many characters of base64."""
    facts = f'{{"index": {index}, "total": 3, "n_samples": {round(seconds * 1000)}, '
    facts += '"sample_rate": 1000, "text": "An event: chunk, and \\"n_samples\\": 7.", '
    return event("chunk", facts + f'"audio_base64": "{"A" * size}"}}')


DONE = event("done", '{"total_chunks": 3}')
END = b"0\r\n\r\n"


class ScriptedServer:
    """Answers every connection with the same steps. Use as a context manager."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps
        self.requests: list[bytes] = []
        self.sent_at: list[float] = []  # of each step's last byte, by the monotonic clock
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self.sock.getsockname()[1]
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "ScriptedServer":
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()
        return self

    def __exit__(self, *unused: object) -> None:
        # Closing alone does not wake the thread that accepts.
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        for thread in [self._accepting, *self._threads]:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.sock.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._answer, args=(connection,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.requests.append(connection.recv(65536))
            try:
                for step in self.steps:
                    time.sleep(step.wait_s)
                    size = max(1, -(-len(step.data) // step.pieces))
                    for start in range(0, len(step.data), size):
                        connection.sendall(step.data[start : start + size])
                        if step.pieces > 1:
                            time.sleep(0.002)
                    self.sent_at.append(time.monotonic())
            except OSError:
                # The client has had enough.
                return
