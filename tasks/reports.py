"""What became of batches, on its way from the pool's threads to Celery.

Requests are Celery's, so only the hub thread may acknowledge them, hand them back and send their
events. Other threads post a report and have no more to do with the batch.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from celery.worker.request import Request
from celery.worker.state import task_ready

from tasks.messages import Kind
from tasks.speaker import Outcome
from tasks.waiting import Held

logger = logging.getLogger(__name__)

# Pause after a batch that could not be published or settled, for example because Redis is full.
RETRY_S = 1.0


@dataclass(slots=True)
class BatchReport:
    """What a pool thread tells the hub thread about a batch.

    ``outcomes`` is None for a batch that has only begun, and empty for one that must be handed
    back because it could not be published.
    """

    batch: list[Held]
    outcomes: list[Outcome] | None
    started: float
    runtime: float = 0.0


class Reports:
    """Posted by any thread, settled by the hub thread, in the order of posting."""

    def __init__(self, consumer: Any, on_long_jobs: Callable[[Sequence[str]], None]) -> None:
        """``on_long_jobs`` is told of which long jobs something was settled; not what."""
        self._consumer = consumer
        self._on_long_jobs = on_long_jobs
        self._posted: deque[BatchReport] = deque()

    def post(self, report: BatchReport) -> None:
        self._posted.append(report)
        self._consumer.hub.call_soon(self.settle_all)

    def settle_all(self) -> None:
        while self._posted:
            report = self._posted.popleft()
            try:
                self.settle(report)
            except redis.RedisError as error:
                # Above all a full Redis, which refuses an acknowledgement too. What is settled
                # has left the batch; the rest is tried again.
                logger.warning("could not settle a batch (%s), trying again", error)
                self._posted.appendleft(report)
                self._consumer.timer.call_after(RETRY_S, self.settle_all)
                return

    def settle(self, report: BatchReport) -> None:
        """Acknowledge the batch's chunks, or hand them back, now.

        Raises:
            redis.RedisError: Redis refuses or is away; what is settled has left the batch.
        """
        if report.outcomes is None:
            for held in report.batch:
                held.request.on_accepted(None, report.started)
            return
        jobs = {h.item.chunk.job_id for h in report.batch if h.item.chunk.kind is Kind.LONG}
        is_published = bool(report.outcomes)
        while report.batch:
            request = report.batch[0].request
            if is_published:
                _close(request, report.outcomes[0], report.runtime)
                report.outcomes.pop(0)
            else:
                hand_back(request)
            report.batch.pop(0)
        if jobs and is_published:
            self._on_long_jobs(sorted(jobs))


def hand_back(request: Request) -> None:
    """To the queue, for another worker."""
    request.reject(requeue=True)
    task_ready(request)


def _close(request: Request, outcome: Outcome, runtime: float) -> None:
    """Acknowledge, then tell Flower how it went."""
    request.acknowledge()
    task_ready(request, successful=outcome is Outcome.SPOKEN)
    if outcome is Outcome.CANCELLED:
        request.send_event("task-revoked", terminated=False, signum=None, expired=False)
    elif outcome is Outcome.FAILED:
        request.send_event("task-failed", exception="the engine could not speak it", traceback="")
    else:
        request.send_event("task-succeeded", result=outcome.name.lower(), runtime=runtime)
