"""What happens when the data directory is full: the job says so, cancelling makes room."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.stack import Stack, wait_for
from tests.test_jobs import appended, long_text, start_slow, submit


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


def test_a_full_disk_is_named_and_a_cancel_makes_room(stack: Stack, small: Path) -> None:
    start_slow(stack)
    job_id = submit(stack, 40_000)
    wait_for(lambda: appended(stack, job_id) >= 10, 30)
    filler = small / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
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
