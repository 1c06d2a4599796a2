"""What every stream depends on goes away for a while and comes back: the web, Redis, memory."""

import threading
from contextlib import suppress

import numpy as np
import pytest
import requests

from tests.sse import Received, joined, read_events, samples_of
from tests.stack import Stack, wait_for
from tests.test_crash import TEXT, Listener, check_whole, start_slow

KEEPS_EVERYTHING = ("--appendonly", "yes", "--appendfsync", "always")


def start_slower(stack: Stack) -> None:
    """Half as fast, so that what is under way still is after a new start of the web."""
    start_slow(stack)
    stack.post("/config/batch", {"max_batch_size": 1})


def read_until(stack: Stack, body: dict, n_chunks: int) -> list[Received]:
    events: list[Received] = []
    with stack.stream(body) as response:
        for event in read_events(response):
            events.append(event)
            if len(events) == 1 + n_chunks:
                break
    return events


def test_a_killed_web_costs_a_resumable_stream_nothing(stack: Stack) -> None:
    stack.start_all()
    body = {"text": TEXT * 2, "seed": 5, "resumable": True}
    events = read_until(stack, body, 2)
    job_id = events[0].data["job_id"]
    stack.kill("web")
    stack.start_web()
    stack.wait_ready()
    headers = {"Last-Event-ID": events[-1].id}
    with stack.get(f"/jobs/{job_id}/events", headers=headers, stream=True) as response:
        events += read_events(response)
    assert [event.event for event in events].count("done") == 1
    whole = stack.post("/synthesize", {"text": TEXT * 2, "seed": 5, "output_format": "wav"})
    difference = joined(events).astype(int) - samples_of(whole.content)
    assert np.abs(difference).max() <= 1


class Falling(Listener):
    """One whose connection will be cut."""

    def run(self) -> None:
        with suppress(requests.RequestException):
            super().run()


def test_listeners_who_fell_with_a_killed_web_are_spoken_to_no_more(stack: Stack) -> None:
    start_slower(stack)
    listeners = [Falling(stack, {"text": TEXT * 8, "seed": n}) for n in range(2)]
    for listener in listeners:
        listener.start()
    wait_for(lambda: all(len(listener.chunks) >= 2 for listener in listeners))
    job_ids = [listener.events[0].data["job_id"] for listener in listeners]
    # However long the new start takes: whether somebody listens is asked when a chunk is begun.
    with stack.held():
        stack.kill("web")
        for listener in listeners:
            listener.join(20)
        stack.start_web()
        stack.wait_ready()
        # Who comes back in time is heard as if nothing had happened.
        back = stack.get(f"/jobs/{job_ids[1]}/events?audio=false", stream=True)
        heard = read_events(back)  # which closes the connection when it is given up
        assert any(event.event == "chunk" for event in heard)

    def state(job_id: str) -> str:
        return str(stack.get(f"/jobs/{job_id}").json()["state"])

    wait_for(lambda: state(job_ids[0]) == "cancelled", 30)
    assert state(job_ids[1]) == "running"
    back.close()


def test_a_web_that_is_stopped_says_so_to_its_listeners(stack: Stack) -> None:
    start_slower(stack)
    kept = {"text": TEXT * 8, "seed": 1, "resumable": True}
    listeners = [Listener(stack, {"text": TEXT * 8}), Listener(stack, kept)]
    for listener in listeners:
        listener.start()
    wait_for(lambda: all(len(listener.chunks) >= 2 for listener in listeners))
    assert stack.stop("web") == 0
    for listener in listeners:
        listener.join(20)
    gone, resumable = (listener.events for listener in listeners)
    assert gone[-1].event == "error" and gone[-1].data["status"] == 503
    assert gone[-1].data["detail"] == "the server is being stopped"
    assert resumable[-1].event == "chunk", "it goes on, so it has not ended"
    stack.start_web()
    stack.wait_ready()
    states = [
        stack.get(f"/jobs/{one[0].data['job_id']}").json()["state"] for one in (gone, resumable)
    ]
    assert states == ["failed", "running"]


def test_who_waits_for_a_long_job_gets_no_part_of_it_as_the_whole(stack: Stack) -> None:
    start_slower(stack)
    stack.start_files()
    body = {"text": TEXT * 8, "target_chunk_chars": 50, "output_format": "wav"}
    answers: list[requests.Response] = []

    def wait() -> None:
        address = f"{stack.url}/synthesize/long?wait=true"
        answers.append(requests.post(address, json=body, timeout=60))

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_for(lambda: any(job["chunks_done"] >= 4 for job in stack.get("/jobs").json()["jobs"]))
    assert stack.stop("web") == 0
    waiting.join(20)
    (answer,) = answers
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "5"
    assert answer.json()["detail"] == "the server is being stopped"
    stack.start_web()
    stack.wait_ready()
    job = stack.get(f"/jobs/{answer.json()['job_id']}").json()
    assert job["state"] == "running", "it goes on for whoever comes back"


def test_a_request_whose_workers_left_is_told_to_come_back(stack: Stack) -> None:
    stack.env["SUPERTONIC_PATIENCE_S"] = "2"
    start_slower(stack)
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(stack.post("/synthesize", {"text": TEXT * 4}))
    )
    asking.start()
    wait_for(lambda: stack.get("/metrics").json()["queue_sizes"]["held"])
    stack.kill("worker")
    asking.join(30)
    assert answers[0].status_code == 503 and answers[0].headers["Retry-After"] == "5"
    assert "no speech worker was running for 2 s" in answers[0].json()["detail"]


def test_a_redis_that_hangs_for_ten_seconds_delays_and_nothing_else(stack: Stack) -> None:
    start_slower(stack)
    listener = Listener(stack, {"text": TEXT})
    listener.start()
    wait_for(lambda: len(listener.chunks) >= 2)
    with stack.held("redis"):
        answer = stack.post("/synthesize", {"text": "Hello."})
        assert answer.status_code == 503 and "Retry-After" in answer.headers
        threading.Event().wait(10)
    check_whole(listener)
    assert stack.post("/synthesize", {"text": "Hello."}).status_code == 200


def test_a_redis_that_keeps_its_log_goes_on_where_it_was_killed(stack: Stack) -> None:
    stack.env |= {"NULL_BATCH_MS": "200", "NULL_BYTES": "30000"}
    stack.start_redis(*KEEPS_EVERYTHING)
    stack.start_web()
    stack.start_worker(app="benchmarks.null_worker")
    stack.wait_ready()
    stack.post("/config/batch", {"max_batch_size": 2})
    listener = Listener(stack, {"text": TEXT})
    listener.start()
    wait_for(lambda: len(listener.chunks) >= 3)
    stack.kill("redis")
    stack.start_redis(*KEEPS_EVERYTHING)
    stack.wait_ready()
    check_whole(listener)


def test_everything_killed_at_once_is_one_stream_resumed(stack: Stack) -> None:
    """With a Redis that keeps its log, even an interactive stream survives a power cut."""
    stack.start_redis(*KEEPS_EVERYTHING)
    stack.start_web()
    stack.start_worker()
    stack.wait_ready()
    body = {"text": TEXT * 2, "seed": 6, "resumable": True}
    events = read_until(stack, body, 1)
    for name in ("web", "worker", "redis"):
        stack.kill(name)
    stack.start_redis(*KEEPS_EVERYTHING)
    stack.start_worker()
    stack.start_web()
    stack.wait_ready()
    path = f"/jobs/{events[0].data['job_id']}/events"
    with stack.get(path, headers={"Last-Event-ID": events[-1].id}, stream=True) as response:
        events += read_events(response)
    indexes = [event.data["index"] for event in events if event.event == "chunk"]
    assert indexes == list(range(events[0].data["total"]))
    assert events[-1].event == "done"


@pytest.mark.parametrize("company", [0, 6])
def test_a_chunk_that_needs_more_memory_than_there_is_fails_alone(
    stack: Stack, company: int
) -> None:
    stack.start_redis()
    stack.start_web()
    stack.start_worker(app="tests.faulty_worker")
    stack.wait_ready()
    listeners = [
        Listener(stack, {"text": "A glutton."}),
        *(Listener(stack, {"text": f"Neighbour number {n}."}) for n in range(company)),
    ]
    for listener in listeners:
        listener.start()
    for listener in listeners:
        listener.join(60)
    glutton, *neighbours = listeners
    assert glutton.events[-1].event == "error"
    assert "MemoryError" in glutton.events[-1].data["detail"]
    assert [neighbour.events[-1].event for neighbour in neighbours] == ["done"] * company
    assert stack.processes["worker"].poll() is None, "the worker lives"
