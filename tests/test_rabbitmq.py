"""RabbitMQ carries the queues, Redis jobs, events and sound. Skipped where RabbitMQ is missing."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from amqp.exceptions import AMQPError
from kombu import Connection, Producer

from tasks.dead_letters import letters
from tests.stack import Stack, free_port, wait_for
from tests.test_crash import TEXT, Listener, check_whole

# Debian's wrapper in /usr/sbin changes to another user; the program itself does not.
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

pytestmark = pytest.mark.skipif(
    not SERVER.exists() or not shutil.which("erl"),
    reason="no RabbitMQ: apt-get install rabbitmq-server",
)


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a RabbitMQ of our own, with nothing of it outside a temporary folder."""
    folder, port = tmp_path_factory.mktemp("rabbitmq"), free_port()
    (folder / "plugins").write_text("[].")
    (folder / "rabbitmq.conf").write_text(f"listeners.tcp.default = 127.0.0.1:{port}\n")
    env = os.environ | {
        "HOME": str(folder),
        "ERL_EPMD_PORT": str(free_port()),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"test{port}@localhost",
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
    }
    with (folder / "out").open("wb") as out:
        server = subprocess.Popen(
            [SERVER], env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    url = f"amqp://guest:guest@127.0.0.1:{port}//"

    def answers() -> bool:
        assert server.poll() is None, (folder / "out").read_text()[-2000:]
        try:
            with Connection(url, connect_timeout=2) as connection:
                connection.connect()
        except (OSError, AMQPError):
            return False
        return True

    try:
        wait_for(answers, 90, "RabbitMQ answers")
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
        # The port mapper is a daemon of its own; it ends when asked, having no nodes left.
        subprocess.run(["epmd", "-kill"], env=env, capture_output=True, timeout=20)


@pytest.fixture
def service(stack: Stack, rabbit: str) -> Stack:
    stack.env |= {"SUPERTONIC_BROKER_URL": rabbit, "NULL_BATCH_MS": "100", "NULL_BYTES": "30000"}
    stack.start_redis()
    stack.start_web()
    stack.start_worker(app="benchmarks.null_worker")
    stack.wait_ready()
    return stack


def test_speech_travels_through_rabbitmq(service: Stack, rabbit: str) -> None:
    answer = service.post("/synthesize", {"text": TEXT})
    assert answer.status_code == 200 and answer.json()["chunks"] > 5
    assert not service.redis.exists("high", "normal", "unacked"), "no queue is in Redis"
    # A killed worker's chunks come back at once: the broker sees its connection close.
    service.post("/config/batch", {"max_batch_size": 2})
    listener = Listener(service, {"text": TEXT})
    listener.start()
    wait_for(lambda: len(listener.chunks) >= 2)
    service.kill("worker")
    service.start_worker(app="benchmarks.null_worker")
    check_whole(listener)
    # What nobody can use is buried here too.
    with Connection(rabbit) as connection:
        producer = Producer(connection.channel(), serializer="json")
        producer.publish({"no": "task"}, routing_key="high")
    wait_for(lambda: letters(service.redis), 10, "a dead letter")
    assert letters(service.redis)[0]["queue"] == "high"
    assert service.post("/synthesize", {"text": "Still here."}).status_code == 200
