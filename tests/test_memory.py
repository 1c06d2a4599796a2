import platform
import subprocess
import sys

import pytest

from tests.stack import Stack, wait_for

HOLES = """
import os, time
from pathlib import Path
from supertonic.memory import give_back_every, reuse_large_buffers

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

reuse_large_buffers()
before = resident_mb()
# Small blocks that stay, between large ones that go: as a web process that has served for days.
pairs = [[b"x" * 300_000, bytearray(2000)] for _ in range(200)]
full = resident_mb()
for pair in pairs:
    pair[0] = None
kept = resident_mb()
give_back_every(0.05)
give_up_at = time.monotonic() + 10
while resident_mb() > before + 20 and time.monotonic() < give_up_at:
    time.sleep(0.05)
print(full - before, kept - before, resident_mb() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its heap is another one")
def test_holes_between_blocks_in_use_go_back_to_the_system() -> None:
    # In a process of its own: the settings are for all of it.
    command = [sys.executable, "-c", HOLES]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    full_mb, kept_mb, left_mb = map(float, output.split())
    assert full_mb > 55
    assert kept_mb > 50  # what is freed is kept for the next ones at first
    assert left_mb < 20


def test_what_a_worker_has_loaded_is_spared_by_the_garbage_collector(stack: Stack) -> None:
    stack.start_redis()
    stack.start_web()
    stack.start_worker(app="tests.frozen_worker")
    stack.wait_ready()

    def spared() -> bool:
        return int(stack.get("/").json()["model"]["description"]) > 50_000

    wait_for(spared)
