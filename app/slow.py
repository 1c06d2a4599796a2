"""Clients that send their request too slowly, by mistake or to hold all threads.

gunicorn reads a request in the thread that will answer it, and waits for it without end. Here a
request has to be there, head and body, within ``READ_S``; where such waiting holds more than half
of the threads, within ``PRESSED_S``. Then the connection is closed. Answers are not limited: a
listener may pause for as long as he likes.
"""

import socket
import threading
import time

READ_S = 30.0
PRESSED_S = 3.0
LOOK_S = 0.5


class ReadingWatch:
    """Connections whose requests are being read, and since when."""

    def __init__(self) -> None:
        self._since: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        self._threads = 1

    def start(self, threads: int) -> None:
        """Watch from now on, in a thread of its own; ``threads`` is how many can read at once."""
        self._threads = threads
        threading.Thread(target=self._run, name="slow clients", daemon=True).start()

    def begin(self, sock: socket.socket) -> None:
        with self._lock:
            self._since[sock] = time.monotonic()

    def allow(self, sock: socket.socket | None, seconds: float) -> None:
        """Give this one so much longer: its request is a large one."""
        with self._lock:
            if sock is not None and sock in self._since:
                self._since[sock] += seconds

    def end(self, sock: socket.socket | None) -> None:
        """The request has been read, or the connection is given up; may be said twice."""
        with self._lock:
            if sock is not None:
                self._since.pop(sock, None)

    def close_slow(self, now: float) -> int:
        """Close what has taken too long; how many those were."""
        with self._lock:
            is_pressed = len(self._since) > self._threads // 2
            limit_s = PRESSED_S if is_pressed else READ_S
            late = [sock for sock, since in self._since.items() if now - since > limit_s]
            # Under the lock: a connection that is read in time must not be closed after it.
            for sock in late:
                del self._since[sock]
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    # The client was quicker.
                    pass
        return len(late)

    def _run(self) -> None:
        while True:
            time.sleep(LOOK_S)
            self.close_slow(time.monotonic())


READING = ReadingWatch()
