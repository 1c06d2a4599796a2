"""What happens when the data directory is full: the job says so, cancelling makes room."""

from pathlib import Path

from tests.stack import Stack, fill, wait_for
from tests.test_jobs import appended, long_text, start_slow, submit


def test_a_full_disk_is_named_and_a_cancel_makes_room(stack: Stack, small: Path) -> None:
    start_slow(stack)
    job_id = submit(stack, 40_000)
    wait_for(lambda: appended(stack, job_id) >= 10, 30)
    fill(small)
    why = "The job cannot be written: No space left on device"
    wait_for(lambda: stack.get(f"/jobs/{job_id}").json()["error"] == why, 60)
    refused = stack.post("/synthesize/long", {"text": long_text(3000)})
    assert refused.status_code == 503 and "disk" in refused.json()["detail"], refused.text
    assert refused.headers["Retry-After"] == "30"
    assert stack.post("/synthesize", {"text": "A stream needs no disk."}).status_code == 200
    cancelled = stack.session.delete(f"{stack.url}/jobs/{job_id}")
    assert cancelled.json()["state"] == "cancelled"
    wait_for(lambda: not (small / "jobs" / job_id / "audio.wav").exists(), 30)
    accepted = submit(stack, 1000)
    wait_for(lambda: stack.get(f"/jobs/{accepted}").json()["state"] == "done", 60)
