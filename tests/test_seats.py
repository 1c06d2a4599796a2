"""Listeners who hold all threads that they may have leave the rest of the service working."""

from contextlib import ExitStack

import pytest
import requests

from tests.stack import Stack, wait_for

HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


def test_listeners_leave_threads_for_everybody_else(stack: Stack) -> None:
    stack.env |= {"SUPERTONIC_WEB_PROCESSES": "1", "SUPERTONIC_WEB_THREADS": "8"}
    stack.start_all()
    with stack.held():
        body = {"text": "Hello there. " * 200}
        job = stack.post("/synthesize/long", body).json()["links"]["self"]
        assert stack.post(f"{job}/pause").json()["state"] == "paused"
    with ExitStack() as listening:
        for _ in range(4):
            events = listening.enter_context(stack.get(f"{job}/events", stream=True))
            assert events.status_code == 200
        for path, body in (
            ("/synthesize", {"text": "Me too."}),
            ("/synthesize/stream", {"text": "Me too."}),
            ("/synthesize/long?wait=true", {"text": "Me too."}),
            ("/v1/audio/speech", {"input": "Me too."}),
        ):
            refused = stack.post(path, body)
            assert refused.status_code == 503, path
            assert refused.headers["Retry-After"] == "2"
            assert "SUPERTONIC_WEB_THREADS" in refused.text
        assert stack.get("/ws/synthesize", headers=HANDSHAKE).status_code == 503
        for path in (f"{job}/audio", f"{job}/book"):
            assert stack.get(path).status_code == 503, path
        assert stack.get(job).status_code == 200
        assert stack.get("/livez").status_code == stack.get("/readyz").status_code == 200
        assert stack.post("/synthesize/long", {"text": "Later."}).status_code == 202
    wait_for(lambda: stack.post("/synthesize", {"text": "Now."}).status_code == 200)


def test_who_no_longer_waits_for_a_file_gives_the_thread_back(stack: Stack) -> None:
    """Though the job goes on: its client has a key to ask for it again."""
    stack.env |= {"SUPERTONIC_WEB_PROCESSES": "1", "SUPERTONIC_WEB_THREADS": "8"}
    stack.env |= {"NULL_BATCH_MS": "1000", "NULL_BYTES": "30000"}
    stack.start_redis()
    stack.start_web()
    stack.start_files()
    stack.start_worker(app="benchmarks.null_worker")
    stack.wait_ready()
    # So slow that none of them is done meanwhile.
    stack.post("/config/batch", {"max_batch_size": 1})
    for number in range(8):
        ask = {"text": "Hello there. " * 200, "max_chunk_chars": 50, "target_chunk_chars": 50}
        with pytest.raises(requests.ReadTimeout):
            requests.post(
                f"{stack.url}/synthesize/long?wait=true",
                json=ask,
                headers={"Idempotency-Key": str(number)},
                timeout=1.5,
            )
    jobs = wait_for(lambda: all_jobs(stack, 8), what="all have been accepted")
    assert {job["state"] for job in jobs} <= {"queued", "running"}


def all_jobs(stack: Stack, count: int) -> list[dict]:
    """None of them unless there are so many."""
    jobs: list[dict] = stack.get("/jobs").json()["jobs"]
    return jobs if len(jobs) == count else []
