"""Fixtures shared by the tests that need the running service."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, settings

from tasks.events import EventStore, connect
from tests.stack import Stack

# The same examples in every run, and however long a busy machine takes for one: what fails is then
# the change at hand. `--hypothesis-profile=default` looks for new ones.
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole service on the built-in voice, shared by tests that leave it as it was."""
    stack = Stack(tmp_path_factory.mktemp("server"))
    try:
        yield stack.start_all()
    finally:
        stack.stop_all()
        for log in sorted(stack.folder.glob("*.log")):
            print(f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A service of the test's own, not started: it may kill whatever it likes."""
    own = Stack(tmp_path)
    try:
        yield own
    finally:
        own.stop_all()


@pytest.fixture
def small(stack: Stack) -> Iterator[Path]:
    """A data directory with room for 12 MB."""
    stack.data_dir.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(stack.data_dir)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting takes more rights")
    yield stack.data_dir
    for name in list(stack.processes):
        stack.stop(name)
    subprocess.run(["umount", "--lazy", str(stack.data_dir)], check=True)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator["redis.Redis"]:
    """A Redis alone, for a file of tests that need no processes beside it."""
    stack = Stack(tmp_path_factory.mktemp("redis"))
    stack.start_redis()
    client = connect(stack.redis_url)
    yield client
    client.close()
    stack.redis.close()
    stack.stop_all()


@pytest.fixture
def store(client: "redis.Redis") -> EventStore:
    """The event store in an empty Redis."""
    client.flushall()
    return EventStore(client)
