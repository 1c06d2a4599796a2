"""The service as ``make run`` starts it, but without a supervisor, on free ports of this machine.

The Procfile's own lines are run, so that what is measured is what is shipped. Each process can be
replaced by another command; the processes started here are ended here, and no others.
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

from app.processes import end_with_parent
from app.run import ROOT, read_procfile
from tasks.events import connect

START_LIMIT_S = 180.0


class Service:
    """Processes by name. Use as a context manager: leaving it stops everything."""

    def __init__(self, **settings: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="supertonic-bench-")
        self.folder = Path(self._folder.name)
        self.port, redis_socket = free_port(), f"{self._folder.name}/redis.sock"
        self.redis_url = f"unix://{redis_socket}"
        self.env = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "REDIS_PORT": "0",
            "REDIS_SOCKET": redis_socket,
            "SUPERTONIC_REDIS_URL": self.redis_url,
            "SUPERTONIC_HOST": "127.0.0.1",
            "SUPERTONIC_PORT": str(self.port),
            "SUPERTONIC_DATA_DIR": str(self.folder),
            "SUPERTONIC_LOG_LEVEL": "WARNING",
            **settings,
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *unused: object) -> None:
        for name in reversed(list(self.processes)):
            self.stop(name)
        self._folder.cleanup()

    def start(self, name: str, command: str = "", **env: str) -> None:
        """Start a process of the Procfile, or ``command`` under its name."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                ["/bin/sh", "-c", command or read_procfile()[name]],
                cwd=ROOT,
                env=self.env | env,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A benchmark that is killed must not leave a whole service behind.
                preexec_fn=end_with_parent if sys.platform == "linux" else None,
            )

    def stop(self, name: str) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def wait_until_ready(self) -> None:
        """Redis, web and a worker answer. Raises RuntimeError with the logs when they do not."""
        self.wait_for(self.port, "/readyz", 200)

    def wait_for(self, port: int, path: str, status: int) -> None:
        self.wait_until(lambda: get_status(port, path) == status)

    def wait_for_redis(self) -> None:
        client = connect(self.redis_url)

        def answers() -> bool:
            with suppress(redis.ConnectionError):
                return bool(client.ping())
            return False

        self.wait_until(answers)

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Raises RuntimeError with the logs when a process ends meanwhile, or it takes too long."""
        give_up_at = time.monotonic() + START_LIMIT_S
        while not is_so():
            ended = [name for name, process in self.processes.items() if process.poll() is not None]
            if ended or time.monotonic() > give_up_at:
                raise RuntimeError(f"{ended or 'the service'}: not ready\n{self._logs()}")
            time.sleep(0.1)

    def cpu_s(self, name: str) -> float:
        """CPU seconds that a process and its children have used so far."""
        return _cpu_s(self.processes[name].pid)

    def rss_bytes(self, name: str) -> int:
        """Resident memory of a process and its children; shared pages count in each."""
        return sum(_rss_bytes(pid) for pid in _tree(self.processes[name].pid))

    def _logs(self) -> str:
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text()[-2000:]}" for log in logs)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def get_status(port: int, path: str) -> int:
    """HTTP status of one GET, 0 while nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def _tree(pid: int) -> list[int]:
    """A process and all it has started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in _tree(int(child)))]


def _rss_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _cpu_s(pid: int) -> float:
    return sum(_own_cpu_s(one) for one in _tree(pid)) or float("nan")


def _own_cpu_s(pid: int) -> float:
    try:
        # After the name, which may hold spaces, in brackets: state is field 3, utime 14, stime 15.
        fields: Any = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
