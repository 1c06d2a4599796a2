"""Resident memory of running processes, sampled while something happens (Linux only)."""

import os
from collections.abc import Callable
from pathlib import Path

from benchmarks.background import Background

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(group: int) -> int:
    """Memory of all processes in a process group that is not backed by files."""
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                _, resident, shared, *_ = (path / "statm").read_text().split()
                total += (int(resident) - int(shared)) * PAGE_BYTES
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


class Peaks(Background):
    """Samples every probe ten times a second; ``growth`` is the peak above the first sample."""

    def __init__(self, probes: dict[str, Callable[[], int]]) -> None:
        super().__init__(every_s=0.1)
        self.probes = probes
        self.first = {name: probe() for name, probe in probes.items()}
        self.peak = dict(self.first)

    def step(self) -> None:
        for name, probe in self.probes.items():
            self.peak[name] = max(self.peak[name], probe())

    @property
    def growth(self) -> dict[str, int]:
        return {name: self.peak[name] - self.first[name] for name in self.probes}
