"""Notices at once that a client has closed its connection.

Writing to a dead connection fails only at the second write, long after its chunks were spoken
for nobody. So one thread per process watches the sockets of all open streams and is told by the
kernel when the other side hangs up.
"""

import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from flask import current_app, request

logger = logging.getLogger(__name__)

HANGUP = select.EPOLLRDHUP | select.EPOLLHUP
# A silent client that is no longer there is noticed after two minutes.
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel ask now and then whether the other side is still there."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        # Not every system has all three.
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class HangupWatch:
    """Calls back when the peer of a watched socket closes."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="hangup", daemon=True).start()

    @contextmanager
    def watch(self, sock: socket.socket | None, callback: Callable[[], None]) -> Iterator[None]:
        """Within the block, ``callback`` runs once, in the watching thread, on a hang-up."""
        fileno = -1 if sock is None else sock.fileno()
        if sock is None or fileno < 0:
            # Not a server that shows its socket: fall back to noticing when a write fails.
            yield
            return
        with self._lock:
            self._watched[fileno] = callback
            self._poll.register(fileno, HANGUP | select.EPOLLONESHOT)
        try:
            yield
        finally:
            with self._lock:
                self._watched.pop(fileno, None)
                # Closed while we were looking away; the kernel has dropped it already.
                with suppress(OSError):
                    self._poll.unregister(fileno)

    def _run(self) -> None:
        while True:
            for callback in self._hung_up([fileno for fileno, _ in self._poll.poll()]):
                try:
                    callback()
                except Exception:
                    # One stream's trouble must not end the watch over all others.
                    logger.exception("after a hang-up")

    def _hung_up(self, filenos: list[int]) -> list[Callable[[], None]]:
        """Callbacks of these sockets. All are taken before any runs, and each socket is asked
        again: a number may have gone to another connection since the kernel spoke of it.
        """
        callbacks = []
        with self._lock:
            for fileno in filenos:
                if fileno not in self._watched:
                    continue
                if _is_hung_up(fileno):
                    callbacks.append(self._watched.pop(fileno))
                else:
                    # Closed by us at this moment: nobody is to be told any more.
                    with suppress(OSError):
                        self._poll.modify(fileno, HANGUP | select.EPOLLONESHOT)
        return callbacks


def if_client_leaves(callback: Callable[[], None]) -> AbstractContextManager[None]:
    """Within the block, ``callback`` runs once, in another thread, when the client of this request
    hangs up.
    """
    watch: HangupWatch = current_app.extensions["hangup"]
    return watch.watch(request.environ.get("gunicorn.socket"), callback)


def _is_hung_up(fileno: int) -> bool:
    look = select.poll()
    look.register(fileno, select.POLLRDHUP | select.POLLHUP)
    return bool(look.poll(0))
