"""What every benchmark needs: alternating timings, percentiles, the machine in words, a table."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Timings:
    """Seconds of each run of one variant: by the clock, and of CPU time this process got."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return percentile(self.wall, 50)

    @property
    def p95(self) -> float:
        return percentile(self.wall, 95)


def alternate(
    variants: Mapping[str, Callable[[], object]],
    repeats: int,
    limit_s: float,
    settle_s: float = 0.0,
    least: int = 3,
) -> dict[str, Timings]:
    """Run the variants in turn, A B A B, after one warm-up each.

    Whatever else the machine does then hits all of them alike. Stops after ``repeats`` rounds, or
    after the ``least`` once ``limit_s`` is over. ``settle_s`` lets one variant's idle threads stop
    spinning before the next begins.
    """
    timings = {name: Timings() for name in variants}
    for run in variants.values():
        run()
    give_up_at = time.perf_counter() + limit_s
    for done in range(repeats):
        if done >= least and time.perf_counter() > give_up_at:
            break
        for name, run in variants.items():
            time.sleep(settle_s)
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            timings[name].wall.append(time.perf_counter() - wall)
            timings[name].cpu.append(time.process_time() - cpu)
    return timings


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios of neighbouring runs, so that a slow minute counts on both sides."""
    return percentile([a / b for a, b in zip(ours, theirs, strict=True)], 50)


def percentile(values: Sequence[float], share: float) -> float:
    """NaN when nothing was measured."""
    return float(np.percentile(values, share)) if values else float("nan")


def machine(*packages: str) -> dict[str, Any]:
    """Hardware, versions and commit: what a figure means nothing without."""
    versions = {name: version(name) for name in packages}
    return {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **versions,
    }


def describe(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, ready for BENCHMARKS.md."""
    return "\n".join(table_row(line) for line in [header, ["---"] * len(header), *rows])


def table_row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def json_line(result: Mapping[str, Any]) -> str:
    return json.dumps(_rounded(result))


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    # Four significant digits: more would be noise. JSON has no NaN.
    if isinstance(value, float):
        return float(f"{value:.4g}") if value == value else None
    return value


def _cpu() -> str:
    """Model, family and vector width; virtual machines often hide all but the family."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    flags = facts.get("flags", "").split()
    found = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if flag in flags]
    family = f"family {facts.get('cpu family')} model {facts.get('model')}"
    return f"{facts.get('model name', platform.machine())} ({family}; {' '.join(found)})"


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    return commit + ("+changes" if git("status", "--porcelain") else "")
