"""How a process that serves for days treats its memory.

A chunk's sound has 300 KB, hundreds of times a second. glibc makes each such buffer a mapping of
its own that the kernel fills with zeros page by page and takes back at once: copying 300 KB costs
300 microseconds instead of 10. So they are kept, and what lies between them and is used no more is
given back now and then.
"""

import ctypes
import gc
import threading
import time

# From malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
KEEP_BYTES = 128 << 20
ARENAS = 2


def reuse_large_buffers() -> None:
    """Keep freed buffers for the next ones. Does nothing where the C library is another."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(M_MMAP_THRESHOLD, 32 << 20)
    mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)
    mallopt(M_TOP_PAD, 16 << 20)
    # Each arena keeps its own.
    mallopt(M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Give all freed memory back to the system, wherever in the heap it lies."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def give_back_every(seconds: float) -> None:
    """From now on, in a thread of its own. Large buffers between small ones that stay leave holes,
    and a process that serves for days has more and more of them.
    """

    def run() -> None:
        while True:
            time.sleep(seconds)
            give_back()

    threading.Thread(target=run, name="memory", daemon=True).start()


def spare_what_is_there() -> None:
    """Python's garbage collector never looks again at what exists now: modules, application, model.

    To be called once everything is loaded. With torch these are half a million objects, and while
    they are looked at everything stands still, a tenth of a second.
    """
    gc.collect()
    gc.freeze()
