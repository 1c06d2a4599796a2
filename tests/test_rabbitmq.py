"""RabbitMQ carries the queues, Redis jobs, events and sound. Skipped where RabbitMQ is missing."""

import os
import shutil
import signal
import subprocess
import time
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


class Rabbit:
    """A RabbitMQ of our own, with nothing of it outside a folder and this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder, port = folder, free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{port}//"
        (folder / "plugins").write_text("[].")
        (folder / "rabbitmq.conf").write_text(f"listeners.tcp.default = 127.0.0.1:{port}\n")
        here = "-kernel inet_dist_use_interface {127,0,0,1}"
        self.env = os.environ | {
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": here,
            "RABBITMQ_NODENAME": f"test{port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
        }

    def start(self) -> None:
        with (self.folder / "out").open("wb") as out:
            self.server = subprocess.Popen(
                [SERVER], env=self.env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        wait_for(self._answers, 90, "RabbitMQ answers")

    def _answers(self) -> bool:
        assert self.server.poll() is None, (self.folder / "out").read_text()[-2000:]
        try:
            with Connection(self.url, connect_timeout=2) as connection:
                connection.connect()
        except (OSError, AMQPError):
            return False
        return True

    def stop(self) -> None:
        if self.server.poll() is not None:
            return
        os.killpg(self.server.pid, signal.SIGTERM)
        try:
            self.server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.server.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rabbit]:
    server = Rabbit(tmp_path_factory.mktemp("rabbitmq"))
    try:
        server.start()
        yield server
    finally:
        server.stop()
        # The port mapper is a daemon of its own; it ends when asked, having no nodes left.
        subprocess.run(["epmd", "-kill"], env=server.env, capture_output=True, timeout=20)


@pytest.fixture
def service(stack: Stack, rabbit: Rabbit) -> Stack:
    stack.env |= {
        "SUPERTONIC_BROKER_URL": rabbit.url,
        "NULL_BATCH_MS": "100",
        "NULL_BYTES": "30000",
    }
    stack.start_redis()
    stack.start_web()
    stack.start_worker(app="benchmarks.null_worker")
    stack.wait_ready()
    return stack


def test_speech_travels_through_rabbitmq(service: Stack, rabbit: Rabbit) -> None:
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
    with Connection(rabbit.url) as connection:
        producer = Producer(connection.channel(), serializer="json")
        producer.publish({"no": "task"}, routing_key="high")
    wait_for(lambda: letters(service.redis), 10, "a dead letter")
    assert letters(service.redis)[0]["queue"] == "high"
    assert service.post("/synthesize", {"text": "Still here."}).status_code == 200


def test_figures_tell_what_waits_in_rabbitmq(service: Stack, rabbit: Rabbit) -> None:
    service.kill("worker")
    with Connection(rabbit.url) as connection:
        producer = Producer(connection.channel(), serializer="json")
        for _ in range(3):
            producer.publish({"no": "task"}, routing_key="low")
        expected = {"high": 0, "normal": 0, "low": 3, "files": 0}
        wait_for(lambda: service.get("/metrics").json()["queue_sizes"] == expected, 10)
        shown = service.get("/metrics?format=prometheus").text
        assert 'supertonic_queue_chunks{queue="low"} 3.0' in shown
        assert 'queue="held"' not in shown, "RabbitMQ does not tell it, and 0 would be wrong"
        connection.channel().queue_purge("low")


def speak(service: Stack) -> list[int]:
    """Statuses of some requests, one after the other; both web processes get some."""
    return [service.post("/synthesize", {"text": f"{n}"}).status_code for n in range(8)]


def test_a_broker_that_was_restarted_refuses_nobody(service: Stack, rabbit: Rabbit) -> None:
    """The connections of the web's pool are older than the broker then."""
    assert speak(service) == [200] * 8
    rabbit.stop()
    rabbit.start()
    wait_for(lambda: service.get("/readyz").status_code == 200, 60)
    assert speak(service) == [200] * 8


@pytest.mark.parametrize("is_held", [False, True], ids=["in no worker", "in a worker"])
def test_what_a_broker_lost_is_sent_again_and_what_a_worker_holds_is_not(
    stack: Stack, rabbit: Rabbit, is_held: bool
) -> None:
    stack.env |= {
        "SUPERTONIC_BROKER_URL": rabbit.url,
        "SUPERTONIC_STALL_S": "1",
        "NULL_BATCH_MS": "4000" if is_held else "100",
        "NULL_BYTES": "30000",
    }
    stack.start_redis()
    stack.start_web()
    stack.start_worker(app="benchmarks.null_worker")
    stack.wait_ready()
    if not is_held:
        stack.kill("worker")
    listener = Listener(stack, {"text": "One sentence, and no more."})
    listener.start()
    if not is_held:
        wait_for(lambda: stack.get("/metrics").json()["queue_sizes"]["high"] == 1, 10)
        with Connection(rabbit.url) as connection:
            connection.channel().queue_purge("high")
        stack.start_worker(app="benchmarks.null_worker")
    asked_at = time.monotonic()
    check_whole(listener)
    assert time.monotonic() - asked_at < 9, "not ten times the usual silence"
    assert ("they seem lost" in stack.log("web")) is not is_held


def test_while_the_broker_is_away_the_queue_is_what_is_missing(
    service: Stack, rabbit: Rabbit
) -> None:
    accepted = service.post("/synthesize/long", {"text": TEXT * 5})
    assert accepted.status_code == 202, accepted.text
    assert service.get("/readyz").status_code == 200
    rabbit.stop()
    ready = service.get("/readyz")
    assert ready.status_code == 503 and "The queue cannot be reached" in ready.json()["detail"]
    answer = service.post("/synthesize", {"text": "Meanwhile."})
    assert answer.status_code == 503 and "The queue cannot be reached" in answer.json()["detail"]
    job = service.url + accepted.json()["links"]["self"]
    assert service.session.delete(job).json()["state"] == "cancelled"
    rabbit.start()


def test_a_broker_that_is_away_takes_no_other_figure_with_it(stack: Stack) -> None:
    stack.env["SUPERTONIC_BROKER_URL"] = f"amqp://guest:guest@127.0.0.1:{free_port()}//"
    stack.start_redis()
    stack.start_web()
    wait_for(lambda: stack.get("/livez").status_code == 200)
    figures = stack.get("/metrics")
    assert figures.status_code == 200 and figures.json()["queue_sizes"] == {}
    assert "supertonic_queue_chunks{" not in stack.get("/metrics?format=prometheus").text
