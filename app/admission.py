"""Who is let in: the limits that a new job is held against, and what one that is refused is told.

The decision itself is made in Redis, in the step that stores the job (tasks/demand.py), so that
two requests at the same moment cannot both get the last place.
"""

import math
import random
from collections.abc import Sequence

from flask import Response, g, has_request_context

from app.errors import Problem
from tasks.demand import Admission, AdmissionLimits
from tasks.settings import Settings
from tasks.workers import WorkerRecord

# Of a worker that has measured nothing yet: what a processor core of 2015 manages.
DEFAULT_RATE = 10.0
# A chunk must be there this long before it is needed, since it has to travel; and a worker may just
# have begun a chunk that is needed later, the half of the longest one on average.
MARGIN_S = 0.3
BLOCKING_S = 8.0


def limits(settings: Settings, workers: Sequence[WorkerRecord]) -> AdmissionLimits:
    """What a new job must keep to, with these workers."""
    rates = [worker.throughput or DEFAULT_RATE for worker in workers]
    return AdmissionLimits(
        rate=sum(rates),
        margin_s=MARGIN_S + BLOCKING_S / min(rates),
        wait_s=settings.max_wait_s,
        long_wait_s=settings.max_long_wait_s,
        owner_s=settings.key_queue_s,
        owner_long_s=settings.key_long_queue_s,
    )


def refusal(admission: Admission, limits: AdmissionLimits) -> Problem:
    """A 429 that says which limit was reached and when to come back."""
    after_s = admission.retry_after_s
    if admission.reason == "wait":
        detail = (
            f"The first sound would come after {admission.wait_s:.1f} s; "
            f"at most {limits.wait_s:g} s are allowed."
        )
    elif admission.reason == "dry":
        detail = (
            "All that the workers can speak in time is promised to others; "
            "with this request somebody's sound would stop."
        )
    elif admission.reason == "long":
        detail = (
            f"The job would be done in {_hours(admission.wait_s)}; "
            f"at most {_hours(limits.long_wait_s)} are allowed."
        )
    else:
        detail = (
            f"This key has too much sound waiting already: at most {limits.owner_s:g} s "
            f"for listeners and {limits.owner_long_s:g} s of long jobs are allowed."
        )
    # Never too early, and not everybody who was refused at the same moment at once.
    retry_after_s = max(1, math.ceil(after_s * random.uniform(1.0, 1.2)))
    return Problem(
        429,
        f"{detail} Try again in {retry_after_s} s.",
        retry_after_s=retry_after_s,
        reason=_REASONS[admission.reason],
        queue_wait_ms=round(admission.wait_s * 1000),
        retry_after_seconds=retry_after_s,
    )


_REASONS = {
    "wait": "max_wait",
    "dry": "capacity",
    "long": "max_long_wait",
    "owner": "key_queue",
}


def keep_wait(wait_s: float) -> None:
    """For ``tell_wait``, where it is a request that asked."""
    if has_request_context():
        g.queue_wait_s = wait_s


def tell_wait(response: Response) -> Response:
    """After every request that asked to be let in: how long it was expected to wait."""
    if "queue_wait_s" in g:
        response.headers["X-Queue-Wait-Ms"] = str(round(g.queue_wait_s * 1000))
    return response


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes"
