"""The processor cores that this process may use."""

import os
from pathlib import Path


def usable_cores() -> int:
    """Physical cores this process may use. Two threads on one core share its multipliers."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return min(len(one_per_core()), _container_limit())


def one_per_core() -> list[int]:
    """Of each physical core that this process may use, one of the processors it is for Linux."""
    cores: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.setdefault(siblings.read_text() if siblings.exists() else str(cpu), cpu)
    return list(cores.values())


def _container_limit() -> int:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return os.cpu_count() or 1
