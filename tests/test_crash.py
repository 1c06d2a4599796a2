"""Processes are killed in the middle of speech: nothing is missing, nothing comes twice."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tests.sse import Received, joined, read_events, samples_of
from tests.stack import Stack, wait_for

TEXT = " ".join(
    f"This is sentence number {n}, and it is neither long nor short." for n in range(60)
)


class Listener(threading.Thread):
    """One client that collects a stream's events."""

    def __init__(self, stack: Stack, body: dict) -> None:
        super().__init__(daemon=True)
        self.stack, self.body = stack, body
        self.events: list[Received] = []

    def run(self) -> None:
        with self.stack.stream(self.body) as response:
            for event in read_events(response):
                self.events.append(event)

    @property
    def chunks(self) -> list[Received]:
        return [event for event in self.events if event.event == "chunk"]


# Of a stream with a middle in which the worker stops until it may go on.
GATED_TEXT = f"{TEXT} Here is the gate. {TEXT}"


def start_slow(stack: Stack, app: str = "tests.gated_worker") -> None:
    """Redis, web, and a worker that takes 200 ms per batch, so that there is a middle to hit."""
    stack.env |= {"NULL_BATCH_MS": "200", "NULL_BYTES": "30000"}
    stack.start_redis()
    stack.start_web()
    stack.start_worker(app=app)
    stack.wait_ready()
    stack.post("/config/batch", {"max_batch_size": 2})


def check_whole(listener: Listener) -> None:
    listener.join(120)
    indexes = [event.data["index"] for event in listener.chunks]
    assert indexes == list(range(listener.events[0].data["total"]))
    assert listener.events[-1].event == "done"


def test_a_killed_worker_is_replaced_and_its_streams_finish(stack: Stack) -> None:
    start_slow(stack)
    listeners = [Listener(stack, {"text": GATED_TEXT, "seed": n}) for n in range(3)]
    with stack.shut_gate():
        for listener in listeners:
            listener.start()
        wait_for(lambda: all(len(listener.chunks) >= 2 for listener in listeners))
        stack.kill("worker")
    stack.start_worker(app="benchmarks.null_worker")
    for listener in listeners:
        check_whole(listener)


def test_a_killed_worker_with_the_real_model_loses_no_sample(stack: Stack) -> None:
    stack.start_all()
    body = {"text": TEXT * 4, "seed": 77}
    listener = Listener(stack, body)
    listener.start()
    wait_for(lambda: len(listener.chunks) >= 1)
    stack.kill("worker")
    stack.start_worker()
    check_whole(listener)
    whole = stack.post("/synthesize", body | {"output_format": "wav"})
    difference = joined(listener.events).astype(int) - samples_of(whole.content)
    assert np.abs(difference).max() <= 1


def test_a_stopped_worker_finishes_its_batch_and_hands_back_the_rest(stack: Stack) -> None:
    start_slow(stack)
    listener = Listener(stack, {"text": GATED_TEXT})
    with stack.shut_gate(), ThreadPoolExecutor(1) as pool:
        listener.start()
        wait_for(lambda: len(listener.chunks) >= 2)
        stopped = pool.submit(stack.stop, "worker", signal.SIGTERM)
        # Handed back: what waited there for the gate to open.
        wait_for(lambda: stack.redis.llen("normal") > 0)
        stack.open_gate()
        assert stopped.result() == 0
    assert stack.redis.hlen("unacked") == 0, "nothing is left in limbo"
    waiting = stack.redis.llen("normal")
    assert waiting > 0
    done = int(stack.redis.hget("supertonic:totals", "chunks"))
    assert done + waiting == listener.events[0].data["total"], "the running batch was published"
    stack.start_worker(app="benchmarks.null_worker")
    check_whole(listener)


def test_what_a_killed_worker_held_is_with_another_once_its_lease_is_over(stack: Stack) -> None:
    # Nobody else sends them again.
    stack.env["SUPERTONIC_STALL_S"] = "600"
    start_slow(stack)
    stack.start_worker("worker2", app="tests.gated_worker")
    wait_for(lambda: stack.get("/readyz").json()["workers"] == 2)
    other = stack.processes["worker"]
    # So that all of it is claimed by the one that will be killed.
    other.send_signal(signal.SIGSTOP)
    listener = Listener(stack, {"text": GATED_TEXT})
    with stack.shut_gate():
        listener.start()
        wait_for(lambda: len(listener.chunks) >= 2)
        stack.kill("worker2")
    before, held = len(listener.chunks), stack.redis.hlen("unacked")
    assert held > 4 and not stack.redis.llen("normal")
    other.send_signal(signal.SIGCONT)
    lease_s = float(stack.env["SUPERTONIC_VISIBILITY_TIMEOUT_S"])
    # A second until the next sweep, and a margin for a busy machine.
    wait_for(lambda: len(listener.chunks) > before + 2, lease_s + 1 + 10, "another goes on")
    check_whole(listener)


def test_a_killed_worker_repeats_at_most_one_batch_per_core(stack: Stack) -> None:
    start_slow(stack, app="tests.two_core_worker")
    # Without a seed: then attempts are noted with the job, as others could not share its chunks.
    listeners = [Listener(stack, {"text": TEXT}) for _ in range(2)]
    for listener in listeners:
        listener.start()
    wait_for(lambda: all(len(listener.chunks) >= 2 for listener in listeners))
    stack.kill("worker")
    stack.start_worker(app="tests.two_core_worker")
    repeated = 0
    for listener in listeners:
        check_whole(listener)
        record = stack.redis.hgetall(f"supertonic:job:{listener.events[0].data['job_id']}")
        begun = [int(count) for name, count in record.items() if name.startswith(b"attempt:")]
        assert len(begun) == listener.events[0].data["total"]
        repeated += sum(begun) - len(begun)
    assert repeated <= 2 * 2, "batches of two on two cores"


def test_a_message_lost_with_its_worker_is_sent_again(stack: Stack) -> None:
    """What the stock transport loses when a worker dies with a message in its socket."""
    stack.env["SUPERTONIC_STALL_S"] = "2"
    stack.start_redis()
    stack.start_web()
    stack.start_worker(app="benchmarks.null_worker")
    stack.wait_ready()
    # It is known for a while, and claims nothing any more.
    stack.processes["worker"].send_signal(signal.SIGSTOP)
    listener = Listener(stack, {"text": TEXT})
    listener.start()
    wait_for(lambda: stack.redis.llen("normal") > 3)
    stack.kill("worker")
    stack.redis.ltrim("normal", 2, -1)
    stack.redis.delete("high")
    stack.start_worker(app="benchmarks.null_worker")
    check_whole(listener)


def test_redis_that_comes_back_empty_costs_a_delay_and_no_chunk(stack: Stack) -> None:
    start_slow(stack)
    listener = Listener(stack, {"text": GATED_TEXT})
    with stack.shut_gate():
        listener.start()
        wait_for(lambda: len(listener.chunks) >= 3)
        stack.kill("redis")
    assert stack.post("/synthesize", {"text": "Hello."}).status_code == 503
    assert stack.get("/readyz").status_code == 503
    stack.start_redis()
    stack.wait_ready()
    check_whole(listener)
    assert stack.post("/synthesize", {"text": "Hello."}).status_code == 200


def test_without_any_worker_a_stream_ends_with_an_honest_error(stack: Stack) -> None:
    stack.env["SUPERTONIC_PATIENCE_S"] = "2"
    start_slow(stack)
    listener = Listener(stack, {"text": GATED_TEXT})
    with stack.shut_gate():
        listener.start()
        wait_for(lambda: len(listener.chunks) >= 1)
        stack.kill("worker")
    listener.join(60)
    assert listener.events[-1].event == "error"
    assert "no speech worker" in listener.events[-1].data["detail"]
    answer = stack.post("/synthesize", {"text": "Hello."})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


def test_a_corrupt_model_ends_the_worker_with_one_clear_line(stack: Stack) -> None:
    model = stack.folder / "model"
    model.mkdir()
    (model / "supertonic.safetensors").write_bytes(b"this is not a model")
    stack.env["SUPERTONIC_MODEL"] = str(model)
    stack.start_redis()
    stack.start_worker()
    assert stack.processes.pop("worker").wait(60) != 0
    lines = [line for line in stack.log("worker").splitlines() if "cannot start" in line]
    assert len(lines) == 1 and "supertonic.safetensors" in lines[0]
    assert "Traceback" not in stack.log("worker")


def test_a_full_redis_slows_a_stream_down_and_breaks_nothing(stack: Stack) -> None:
    """36 MB of sound through a Redis of 20 MB: it fits only as fast as it is delivered."""
    stack.env["NULL_BYTES"] = "300000"
    stack.start_redis("--save", "", "--maxmemory", "20mb")
    stack.start_web()
    stack.start_worker(app="benchmarks.null_worker")
    stack.wait_ready()
    listener = Listener(stack, {"text": "\n\n".join(f"Paragraph number {n}." for n in range(120))})
    listener.start()
    check_whole(listener)
    assert stack.processes["worker"].poll() is None, "the worker lives"


def test_a_slow_listener_finds_nothing_expired(stack: Stack) -> None:
    stack.env |= {"SUPERTONIC_STREAM_TTL_S": "5", "NULL_BYTES": "2000000"}
    stack.start_redis()
    stack.start_web()
    stack.start_worker(app="benchmarks.null_worker")
    stack.wait_ready()
    events = []
    with stack.stream({"text": TEXT}) as response:
        for event in read_events(response):
            events.append(event)
            # A player that reads no faster than it plays.
            threading.Event().wait(0.6)
    indexes = [event.data["index"] for event in events if event.event == "chunk"]
    assert len(indexes) >= 12 and indexes == list(range(events[0].data["total"]))
