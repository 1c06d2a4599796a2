"""Ends a worker whose engine hangs: what it holds goes to others, and a fresh one is started.

Celery's own time limits do nothing for threads. A hanging engine is seen by the hub thread, which
hands back what was not begun. An engine that hangs without ever letting go of the interpreter
stops the hub thread too; then only a timer in C is left, which ends the process as it is. Either
way the batch itself returns when its lease runs out, and a chunk that was begun before runs alone,
so after four times the guilty one is given up (tasks/speaker.py).
"""

import faulthandler
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

EXIT_STATUS = 70  # EX_SOFTWARE: the supervisor starts another
# How many times longer than expected a batch may take, on top of the limit.
PATIENCE = 20
# The hub thread looks in twice a second; when it has not for so long, it never will.
HUB_LIMIT_S = 60.0


class Watchdog:
    """``hand_back`` is called before the end. ``limit_s`` 0 switches it off."""

    def __init__(self, limit_s: float, hand_back: Callable[[], None]) -> None:
        self.limit_s = limit_s
        self.hand_back = hand_back
        self._running: dict[int, tuple[float, str]] = {}  # by thread: when it is too late, and what

    def begin(self, chunks: int, audio_s: float, rate: float) -> None:
        """A batch of ``audio_s`` estimated seconds begins in this thread; ``rate`` is what was
        measured lately, in audio seconds per second, or 0.
        """
        expected_s = audio_s / rate if rate else 0.0
        limit_s = self.limit_s + PATIENCE * expected_s
        about = f"a batch of {chunks} chunks, {audio_s:.1f} s of audio, took {limit_s:.1f} s"
        self._running[threading.get_ident()] = (time.monotonic() + limit_s, about)

    def end(self) -> None:
        """This thread's batch is over."""
        self._running.pop(threading.get_ident(), None)

    def rest(self) -> None:
        """The hub thread does nothing but wait for its connection now, for however long."""
        faulthandler.cancel_dump_traceback_later()

    def look(self) -> None:
        """Called by the hub thread about twice a second."""
        if not self.limit_s:
            return
        faulthandler.dump_traceback_later(self.limit_s + HUB_LIMIT_S, exit=True)
        end_at, about = min(list(self._running.values()), default=(math.inf, ""))
        if time.monotonic() < end_at:
            return
        logger.critical("the engine hangs: %s; handing back and ending", about)
        faulthandler.dump_traceback(all_threads=True)
        try:
            self.hand_back()
        except Exception:
            logger.exception("could not hand back; the leases will run out")
        logging.shutdown()
        sys.stderr.flush()
        # Nothing less ends a process of which a thread hangs in a driver.
        os._exit(EXIT_STATUS)
