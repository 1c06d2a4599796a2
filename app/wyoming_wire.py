"""Events of Wyoming, the protocol of Home Assistant's voice assistants, on a socket.

An event is a line of JSON with its type, and behind it, as long as that line says, more JSON with
its data and then bytes. The protocol's own library reads whatever length it is told; a server that
strangers reach has to bound what it keeps.
"""

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from app.errors import Problem
from app.hangup import keep_alive
from app.reading import parse_json

# How often a silent client is looked at, and how long one that takes nothing is waited for.
LOOK_S = 2.0
SLOW_S = 60.0
READ_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Event:
    type: str
    data: dict[str, Any]


class Wire:
    """Reads events, in one thread, and writes them, from several, each whole."""

    def __init__(self, sock: socket.socket, max_bytes: int, may_wait: Callable[[], bool]) -> None:
        """
        Args:
            max_bytes: of a line, of data and of a payload.
            may_wait: whether to wait on for a client that says nothing.
        """
        self._sock = sock
        self._max_bytes = max_bytes
        self._may_wait = may_wait
        self._unread = bytearray()
        self._writing = threading.Lock()
        sock.settimeout(LOOK_S)
        # A chunk's end must not wait for the next chunk.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(sock)

    def read(self) -> Event | None:
        """The next event; None when the client has left or was silent for too long.

        Raises:
            Problem: 400 or 413 for what is no event. Where the next one begins is not known then.
        """
        line = self._line()
        if line is None:
            return None
        head = _object(line, "A line")
        kind, data = head.get("type"), head.get("data") or {}
        if not isinstance(kind, str) or not isinstance(data, dict):
            raise Problem(400, "An event needs a type, a string, and its data is an object.")
        data_length = self._length(head, "data_length")
        payload_length = self._length(head, "payload_length")
        if data_length:
            more = self._exactly(data_length)
            if more is None:
                return None
            data |= _object(more, "An event's data")
        return Event(kind, data) if self._skip(payload_length) else None

    def write(self, kind: str, data: dict[str, Any] | None = None, payload: bytes = b"") -> None:
        """Raises OSError: the client has left, or takes nothing."""
        body = json.dumps(data).encode() if data else b""
        head: dict[str, Any] = {"type": kind}
        if body:
            head["data_length"] = len(body)
        if payload:
            head["payload_length"] = len(payload)
        with self._writing:
            self._send(b"".join((json.dumps(head).encode(), b"\n", body, payload)))

    def hang_up(self) -> None:
        """End all reading and writing, also what is blocked; what was written still arrives."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock.close()

    def _line(self) -> bytes | None:
        searched = 0
        while (end := self._unread.find(b"\n", searched)) < 0:
            searched = len(self._unread)
            if searched > self._max_bytes:
                raise Problem(413, f"A line is larger than {self._max_bytes} bytes.")
            if not self._receive():
                return None
        return self._take(end + 1)

    def _length(self, head: dict[str, Any], name: str) -> int:
        length = head.get(name) or 0
        if not isinstance(length, int) or length < 0:
            raise Problem(400, f"{name} must be a whole number of bytes.")
        if length > self._max_bytes:
            raise Problem(413, f"{name} is larger than {self._max_bytes} bytes.")
        return length

    def _exactly(self, n_bytes: int) -> bytes | None:
        while len(self._unread) < n_bytes:
            if not self._receive():
                return None
        return self._take(n_bytes)

    def _skip(self, n_bytes: int) -> bool:
        """Leave out what nobody asked for; false when the client left before its end."""
        while n_bytes > len(self._unread):
            n_bytes -= len(self._unread)
            self._unread.clear()
            if not self._receive():
                return False
        self._take(n_bytes)
        return True

    def _take(self, n_bytes: int) -> bytes:
        taken = bytes(self._unread[:n_bytes])
        del self._unread[:n_bytes]
        return taken

    def _receive(self) -> bool:
        """Have more to read; false when no more comes."""
        while self._may_wait():
            try:
                received = self._sock.recv(READ_BYTES)
            except TimeoutError:
                continue
            except OSError:
                return False
            self._unread += received
            return bool(received)
        return False

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        give_up_at = time.monotonic() + SLOW_S
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
            except TimeoutError:
                if time.monotonic() > give_up_at:
                    raise
                continue
            give_up_at = time.monotonic() + SLOW_S


def _object(text: bytes, what: str) -> dict[str, Any]:
    try:
        found = parse_json(text)
    except Problem as problem:
        raise Problem(400, f"{what} must be a JSON object. {problem.detail}") from None
    if not isinstance(found, dict):
        raise Problem(400, f"{what} must be a JSON object, not {type(found).__name__}.")
    return found
