"""`python -m app.run` as a person meets it: it starts, heals, complains and stops, all for real."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
import requests

from app.checks import check_model
from app.run import check_redis, get
from tasks.settings import Settings
from tests.stack import closed_port, free_port, redis_binary, wait_for

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT_S = 120.0


@dataclass
class Launch:
    """One `python -m app.run` on its own port and data directory."""

    data_dir: Path
    port: int
    process: subprocess.Popen[bytes]

    def output(self) -> str:
        return (self.data_dir / "output").read_text()

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.output()
        return "Ready: " in self.output()

    def status(self, path: str) -> int:
        try:
            return requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=5).status_code
        except requests.ConnectionError:
            return 0

    def pid_of(self, name: str) -> int:
        """The running process's pid, 0 while there is none."""
        config = str(self.data_dir / "run" / "supervisord.conf")
        command = [sys.executable, "-m", "supervisor.supervisorctl", "-c", config, "pid", name]
        answer = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        return int(answer) if answer.isdigit() else 0

    def pids(self) -> list[int]:
        """Everything that was started for this data directory and still lives."""
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if self._is_ours(path)]

    def _is_ours(self, process: Path) -> bool:
        try:
            environ = (process / "environ").read_bytes()
        except OSError:
            return False
        return f"SUPERTONIC_DATA_DIR={self.data_dir}\0".encode() in environ


def launch(data_dir: Path, port: int, **settings: str) -> Launch:
    data_dir.mkdir(exist_ok=True)
    kept = {name: text for name, text in os.environ.items() if not name.startswith("SUPERTONIC_")}
    own = {"SUPERTONIC_PORT": str(port), "SUPERTONIC_DATA_DIR": str(data_dir)}
    with (data_dir / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.run"],
            cwd=ROOT,
            env=kept | own | {"SUPERTONIC_MODEL": "tiny"} | settings,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return Launch(data_dir, port, process)


def ended(started: Launch) -> tuple[int, str]:
    """Exit status and last line of a launch that is expected to end by itself."""
    status = started.process.wait(timeout=START_LIMIT_S)
    return status, started.output().splitlines()[-1]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    wyoming = {"SUPERTONIC_WYOMING_HOST": "127.0.0.1", "SUPERTONIC_WYOMING_PORT": str(free_port())}
    started = launch(tmp_path_factory.mktemp("service"), free_port(), **wyoming)
    try:
        wait_for(started.is_ready, START_LIMIT_S)
        yield started
    finally:
        started.process.terminate()
        started.process.wait(timeout=120)


def test_it_says_where_the_service_is_and_which_model_speaks(service: Launch) -> None:
    address = f"http://127.0.0.1:{service.port}"
    assert f"Ready: {address} (page: {address}/ui, model: tiny)" in service.output()
    assert service.status("/readyz") == 200
    assert service.status("/ui") == 200


def test_the_log_of_every_process_is_shown_under_its_name(service: Launch) -> None:
    def shown() -> set[str]:
        lines = [line for line in service.output().splitlines() if " | " in line]
        return {line.split(" | ")[0].strip() for line in lines}

    every = {"redis", "worker", "files", "web", "wyoming"}
    wait_for(lambda: shown() >= every, what="each has written something")
    assert shown() == every


def test_home_assistant_is_answered_where_it_was_asked_for(service: Launch) -> None:
    environ = Path(f"/proc/{service.pid_of('wyoming')}/environ").read_text()
    port = int(re.search(r"SUPERTONIC_WYOMING_PORT=(\d+)", environ)[1])
    assert f"For Home Assistant: tcp://127.0.0.1:{port}" in service.output()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(b'{"type": "ping"}\n')
        assert b"pong" in sock.recv(100)


def test_a_port_for_home_assistant_that_is_in_use_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        wyoming = {"SUPERTONIC_WYOMING_HOST": "127.0.0.1", "SUPERTONIC_WYOMING_PORT": port}
        status, last_line = ended(launch(tmp_path, free_port(), **wyoming))
    assert status == 1
    assert last_line.startswith(f"Stopped: cannot listen on 127.0.0.1:{port} (Address ")
    assert "SUPERTONIC_WYOMING_PORT" in last_line


def test_redis_is_reached_by_nobody_else(service: Launch) -> None:
    """It has no port, and lies where only its own user may enter."""
    environ = Path(f"/proc/{service.pid_of('web')}/environ").read_text().split("\0")
    (url,) = [one.partition("=")[2] for one in environ if one.startswith("SUPERTONIC_REDIS_URL=")]
    assert f"Redis is at {url}" in service.output()
    with redis.Redis.from_url(url) as client:
        assert client.config_get("port") == {"port": "0"}
    at = Path(urlsplit(url).path)
    assert at.is_socket() and at.stat().st_mode & 0o077 == 0
    assert at.parent.stat().st_mode & 0o077 == 0


def test_a_killed_worker_comes_back_while_the_rest_goes_on(service: Launch) -> None:
    worker, web = service.pid_of("worker"), service.pid_of("web")
    os.kill(worker, signal.SIGKILL)
    again = wait_for(lambda: {service.pid_of("worker")} - {0, worker}, START_LIMIT_S)
    # The killed worker's record lasts a few seconds; ready has to be the new one's doing.
    wait_for(lambda: f"worker-{again.copy().pop()}@" in living_workers(service), START_LIMIT_S)
    assert service.status("/readyz") == 200
    assert service.pid_of("web") == web


def living_workers(service: Launch) -> str:
    return requests.get(f"http://127.0.0.1:{service.port}/", timeout=5).text


def test_a_port_in_use_is_said_before_anything_starts(service: Launch, tmp_path: Path) -> None:
    status, last_line = ended(launch(tmp_path, service.port))
    assert status == 1
    assert last_line.startswith(f"Stopped: cannot listen on 127.0.0.1:{service.port} (Address ")
    assert "SUPERTONIC_PORT" in last_line
    assert not (tmp_path / "run").exists()


def test_two_services_do_not_share_a_data_directory(service: Launch, tmp_path: Path) -> None:
    # `launch` keeps its output in the data directory, hence the detour over a setting.
    second = launch(tmp_path, free_port(), SUPERTONIC_DATA_DIR=str(service.data_dir))
    status, last_line = ended(second)
    assert status == 1
    assert f"another service uses {service.data_dir}" in last_line


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("RATE_LIMIT", "60", "such as 60/minute"),
        ("CORS_ORIGINS", "app.example.com", "is not an origin"),
        ("API_KEYS", " , ", "holds no key"),
        ("WEBHOOK_SECRET", "short", "at least 24"),
        ("LOG_LEVEL", "loud", "expected one of DEBUG"),
        ("LANGUAGE", "de", "expected one of en"),
        ("LEXICON", "/nowhere/words.json", "No such file"),
        ("REDIS_URL", "127.0.0.1:6379", "expected redis://:PASSWORD@HOST"),
        ("REDIS_URL", "redis://:pa/ss@host", "expected redis://:PASSWORD@HOST"),
        ("BROKER_URL", "foo://x", "must begin with one of redis://"),
        ("DATA_DIR", "/proc/nowhere", "/proc/nowhere"),
        ("DEVICE", "gpu", "expected auto, cpu, cuda or cuda:N"),
        ("PRECISION", "half", "expected one of auto, float32"),
        ("MODEL", "kokoro", "expected one of auto, tiny, supertonic-2, or a directory that exists"),
    ],
)
def test_a_setting_only_one_process_reads_stops_everything_before_it_starts(
    tmp_path: Path, name: str, value: str, says: str
) -> None:
    status, last_line = ended(launch(tmp_path, free_port(), **{f"SUPERTONIC_{name}": value}))
    # What stands in the way of the directory may go away, as a disk that is not there yet.
    assert status == (1 if name == "DATA_DIR" else os.EX_CONFIG)
    assert last_line.startswith(f"Stopped: SUPERTONIC_{name}")
    assert says in last_line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["auto", "supertonic-2"])
def test_a_misspelt_model_directory_is_not_made(tmp_path: Path, model: str) -> None:
    model_dir = tmp_path / "modles"
    settings = {"SUPERTONIC_MODEL": model, "SUPERTONIC_MODEL_DIR": str(model_dir)}
    status, last_line = ended(launch(tmp_path, free_port(), **settings))
    assert status == os.EX_CONFIG
    assert last_line.startswith(f"Stopped: SUPERTONIC_MODEL_DIR='{model_dir}'")
    assert "make model" in last_line
    assert not model_dir.exists() and not (tmp_path / "run").exists()


def test_the_models_and_devices_there_are_are_let_pass(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for model in ("auto", "tiny", str(tmp_path)):
        check_model(Settings(model=model))
    for model in ("auto", "supertonic-2"):
        check_model(Settings(model=model, model_dir=str(tmp_path / "models")))
    for device in ("auto", "cpu", "cuda", "cuda:1"):
        check_model(Settings(device=device))


def test_a_redis_that_does_not_answer_is_said_before_anything_starts(tmp_path: Path) -> None:
    with closed_port() as port:
        at = f"127.0.0.1:{port}"
        started = launch(tmp_path, free_port(), SUPERTONIC_REDIS_URL=f"redis://:se@cret@{at}/0")
        status, last_line = ended(started)
    assert status == 1
    assert last_line.startswith(f"Stopped: SUPERTONIC_REDIS_URL: the Redis at redis://{at}/0 ")
    assert "refused" in last_line and "cret" not in last_line
    assert len(started.output().splitlines()) == 1


def test_a_redis_that_is_just_starting_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.run.REDIS_PATIENCE_S", 30)  # a second may last longer here
    port = free_port()
    late = ["sh", "-c", 'sleep 1; exec "$@"', "sh", redis_binary()]
    process = subprocess.Popen([*late, "--port", str(port), "--save", ""])
    try:
        check_redis(f"redis://127.0.0.1:{port}/0")
    finally:
        process.terminate()
        process.wait(10)


def test_a_percent_sign_in_a_path_is_a_percent_sign(tmp_path: Path) -> None:
    folder = tmp_path / "100%"
    folder.mkdir()
    started = launch(folder, free_port())
    try:
        wait_for(started.is_ready, START_LIMIT_S)
        assert (folder / "run" / "web.log").exists()
    finally:
        started.process.terminate()
        started.process.wait(timeout=120)


def test_the_web_can_listen_on_ipv6(tmp_path: Path) -> None:
    started = launch(tmp_path, free_port(), SUPERTONIC_HOST="::1")
    try:
        wait_for(started.is_ready, START_LIMIT_S)
        url = f"http://[::1]:{started.port}"
        assert f"Ready: {url} " in started.output()
        assert requests.get(f"{url}/livez", timeout=5).status_code == 200
    finally:
        started.process.terminate()
        started.process.wait(timeout=120)


def test_the_web_is_asked_under_a_name_it_always_answers_to() -> None:
    """Its address may be none of SUPERTONIC_ALLOWED_HOSTS; it would never be called ready."""
    asked: list[bytes] = []

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            asked.append(connection.recv(4096))
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with socket.create_server(("127.0.0.2", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        answer = get(Settings(host="127.0.0.2", port=server.getsockname()[1]), "/readyz")
        thread.join()
    assert answer == (200, {})
    assert asked[0].count(b"Host:") == 1 and b"\r\nHost: localhost\r\n" in asked[0]


def test_a_misspelt_setting_is_named(tmp_path: Path) -> None:
    status, last_line = ended(launch(tmp_path, free_port(), SUPERTONIC_MODLE="tiny"))
    assert status == os.EX_CONFIG
    assert last_line.startswith("Stopped: SUPERTONIC_MODLE is not a setting")


def test_systemd_is_told_not_to_start_again_with_wrong_settings() -> None:
    unit = (ROOT / "docs/deploying.md").read_text()
    assert f"\nRestartPreventExitStatus={os.EX_CONFIG}\n" in unit


def test_a_corrupt_model_ends_everything_with_the_workers_own_words(tmp_path: Path) -> None:
    model_dir = tmp_path / "model"
    model_dir.mkdir()
    (model_dir / "supertonic.safetensors").write_bytes(b"not weights at all")
    started = launch(tmp_path, free_port(), SUPERTONIC_MODEL=str(model_dir))
    status, last_line = ended(started)
    assert status == 1
    assert last_line.startswith("Stopped: worker does not keep running: ")
    assert "supertonic.safetensors" in last_line
    assert started.pids() == []


def test_ctrl_c_stops_everything_and_leaves_nothing_behind(tmp_path: Path) -> None:
    started = launch(tmp_path, free_port())
    wait_for(started.is_ready, START_LIMIT_S)
    assert len(started.pids()) >= 6  # the launcher, supervisord and four processes
    started.process.send_signal(signal.SIGINT)
    assert started.process.wait(timeout=60) == 0
    assert started.pids() == []
    assert "Redis is now ready to exit" in started.output()


def test_supervision_ends_with_a_killed_launcher(tmp_path: Path) -> None:
    """Nobody could stop the service in order any more, so it stops itself."""
    started = launch(tmp_path, free_port())
    wait_for(lambda: started.pid_of("redis"), START_LIMIT_S)
    started.process.kill()
    started.process.wait()
    wait_for(lambda: not started.pids(), 60)
