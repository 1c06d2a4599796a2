"""Looks over this machine, its model files and the model itself, and says one thing per line.

Runs wherever the package is installed: what only a worker needs may be missing on a web machine,
so this module imports no torch; ``checkup`` does, once it is known to be there.
"""

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from supertonic.download import MANIFEST, WEIGHTS, hashes, read_manifest
from supertonic.errors import SupertonicError
from supertonic.voices import VOICES

PACKAGES = {
    "torch": "workers",
    "safetensors": "workers",
    "numpy": "workers and the web",
    "celery": "workers and the web",
    "redis": "workers and the web",
    "flask": "the web",
}
OLDEST_PYTHON = (3, 11)
DEFAULT_REDIS_PORT = 6379
REDIS_TIMEOUT_S = 2


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Verdict:
    level: Level
    sentence: str

    def __str__(self) -> str:
        # One line, whatever some library's error has put into it.
        return f"{self.level:<4}  {' '.join(self.sentence.split())}"


def ok(sentence: str) -> Verdict:
    return Verdict(Level.OK, sentence)


def warn(sentence: str) -> Verdict:
    return Verdict(Level.WARN, sentence)


def fail(sentence: str) -> Verdict:
    return Verdict(Level.FAIL, sentence)


def examine(model: str, model_dir: Path, device: str, precision: str = "auto") -> Iterator[Verdict]:
    """Everything worth knowing about this installation, the quick answers first."""
    yield _python()
    yield from map(_package, PACKAGES)
    yield _cores()
    yield from service()
    if url := os.environ.get("SUPERTONIC_REDIS_URL"):
        yield redis_answers(url)
    if model != "tiny":
        yield from files_in(model_dir if model in ("auto", "supertonic-2") else Path(model))
    if _version("torch") is None:
        yield warn("the model was not tried: that takes torch, on the machines that run a worker")
        return
    # Only here, because it imports torch.
    from supertonic.checkup import check_model

    try:
        yield from check_model(model, model_dir, device, precision)
    except SupertonicError as error:
        yield fail(str(error))


def service() -> Iterator[Verdict]:
    """What the service's own checks say. In a process of theirs: they load its queue and its web,
    which this package does without.
    """
    if _version("flask") is None:
        yield warn("the settings were not checked: that takes flask, where a web runs")
        return
    command = [sys.executable, "-m", "app.checks"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            level, sentence = line.split(maxsplit=1)
            yield Verdict(Level(level), sentence.rstrip())
    if process.returncode not in (0, os.EX_CONFIG):
        yield fail(f"the settings could not be checked: {' '.join(command)} ended with an error")


def redis_answers(url: str) -> Verdict:
    """Whether something that speaks the Redis protocol listens where ``url`` points."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "127.0.0.1", parts.port or DEFAULT_REDIS_PORT
    except ValueError:
        return fail("SUPERTONIC_REDIS_URL cannot be read; it is like redis://127.0.0.1:6379/0")
    if parts.scheme not in ("redis", "unix"):
        return warn(f"Redis was not tried: redis:// and unix:// are, {parts.scheme}:// is not")
    place = parts.path if parts.scheme == "unix" else f"{host}:{port}"
    try:
        with ExitStack() as stack:
            if parts.scheme == "unix":
                connection = stack.enter_context(socket.socket(socket.AF_UNIX))
                connection.settimeout(REDIS_TIMEOUT_S)
                connection.connect(parts.path)
            else:
                connection = socket.create_connection((host, port), REDIS_TIMEOUT_S)
                stack.enter_context(connection)
            connection.sendall(b"PING\r\n")
            answer = connection.recv(64)
    except OSError as error:
        return warn(f"Redis at {place} does not answer ({error}); no speech without it")
    # A server with a password answers the ping with an error, but it does answer.
    if answer.startswith((b"+PONG", b"-NOAUTH")):
        return ok(f"Redis answers at {place}")
    return warn(f"what listens at {place} is not Redis: it answered {answer[:20]!r}")


def files_in(directory: Path) -> Iterator[Verdict]:
    """What lies in a model directory, and whether it still is what was downloaded."""
    weights = directory / WEIGHTS
    if not weights.is_file():
        yield warn(f"{directory} holds no {WEIGHTS}; `python -m supertonic download` fetches it")
        return
    voices = [voice for voice in VOICES if (directory / f"voice_styles/{voice}.json").is_file()]
    size = weights.stat().st_size / 1e6
    yield ok(
        f"{directory} holds {WEIGHTS} ({size:.1f} MB) and {len(voices)} of {len(VOICES)} voices"
    )
    entries = read_manifest(directory)
    if not entries:
        yield warn(f"{directory} has no {MANIFEST}: the files were not downloaded, so not verified")
        return
    for entry in entries.values():
        path = directory / entry.file
        if not path.is_file():
            yield fail(f"{path} is missing; `python -m supertonic download` fetches it")
        elif hashes(path)[1] != entry.sha256:
            yield fail(f"{path} is damaged; `python -m supertonic download` fetches it again")
    commits = sorted({f"{entry.repo}@{entry.commit[:8]}" for entry in entries.values()})
    yield ok(f"{len(entries)} files compared with {MANIFEST}, from {', '.join(commits)}")


def _python() -> Verdict:
    sentence = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < OLDEST_PYTHON:
        return fail(f"{sentence}; at least {'.'.join(map(str, OLDEST_PYTHON))} is needed")
    return ok(sentence)


def _package(name: str) -> Verdict:
    version = _version(name)
    if version is None:
        return warn(f"{name} is not installed; {PACKAGES[name]} need it")
    return ok(f"{name} {version}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> Verdict:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ok(f"{usable} of {os.cpu_count()} CPU cores are usable")
