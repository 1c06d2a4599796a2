"""One long job, and everything killed in the middle of it, again and again."""

import os
import random
import signal
import threading

import numpy as np
import pytest

from tests.sse import samples_of
from tests.stack import Stack, wait_for
from tests.test_jobs import appended, done, long_text

BODY = {
    "text": long_text(8000),
    "seed": 17,
    # So that it is still under way after three kills, also where this test stands still at times.
    "steps": 5,
    "target_chunk_chars": 100,
    "max_chunk_chars": 200,
}


def sound(stack: Stack, job_id: str) -> np.ndarray:
    return samples_of(stack.get(f"/jobs/{job_id}/audio").content).astype(int)


@pytest.mark.slow
def test_kills_at_random_moments_change_no_sample(stack: Stack) -> None:
    """SIGKILL to Redis (which keeps nothing), worker, files worker and web, all at once or one
    after the other, at moments a seed decides; what comes out is what an undisturbed run gives.
    """
    dice = random.Random(4)
    stack.start_all()
    undisturbed_id = stack.post("/synthesize/long", BODY).json()["job_id"]
    done(stack, undisturbed_id)
    undisturbed = sound(stack, undisturbed_id)
    job_id = stack.post("/synthesize/long", BODY).json()["job_id"]
    for _ in range(3):
        before = appended(stack, job_id)
        wait_for(lambda before=before: appended(stack, job_id) > before, 60, "it goes on")
        threading.Event().wait(dice.uniform(0, 0.5))
        names = ["redis", "worker", "files", "web"]
        dice.shuffle(names)
        for name in names:
            os.killpg(stack.processes[name].pid, signal.SIGKILL)
            threading.Event().wait(dice.choice([0, 0, dice.uniform(0, 0.3)]))
        for name in names:
            stack.processes.pop(name).wait(10)
        kept = appended(stack, job_id)
        stack.start_all()
        assert appended(stack, job_id) >= kept, "nothing that was on disk is given up"
    job = done(stack, job_id)
    assert job["state"] == "done"
    disturbed = sound(stack, job_id)
    assert len(disturbed) == len(undisturbed)
    assert np.abs(disturbed - undisturbed).max() <= 1
    assert np.abs(undisturbed).max() > 500
