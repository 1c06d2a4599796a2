"""How chunk messages become batches inside a real Celery worker.

Celery receives, acknowledges, reports and stops as always; only one thing differs. The chunk
task's ``Strategy`` puts each received request into a waiting list instead of a pool's queue, and
the pool's threads pull batches from it: one for each core of a CPU, or a single one for a GPU.

The hub thread (Celery's event loop) owns every Celery and kombu object; the pool threads own the
device. They meet in two places only: chunks come through the waiting list (tasks/waiting.py), and
what became of them goes back as reports (tasks/reports.py), through ``hub.call_soon``.
"""

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from celery import bootsteps
from celery.worker.request import Request
from celery.worker.state import task_ready, task_reserved

from tasks.batching import BatchLimits, Waiting
from tasks.lanes import Lanes
from tasks.messages import Chunk, MalformedMessage
from tasks.over import JobsOver
from tasks.refusing import guard
from tasks.reports import RETRY_S, BatchReport, Reports, hand_back
from tasks.speaker import EngineBroken, Outcome, Speaker
from tasks.waiting import Held, WaitingList
from tasks.watchdog import Watchdog

logger = logging.getLogger(__name__)

# How long a stop waits for the running batch before it hands everything back.
STOP_PATIENCE_S = 50.0


class ChunkRequest(Request):
    """A request whose times are in UTC. Celery would look the time zone up in its configuration
    for every message, a seventh of what receiving one costs.
    """

    _tzlocal = UTC


class BatchingConsumer(bootsteps.StartStopStep):
    """Consumer bootstep that takes what the lanes bring and has the pool's threads speak it."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    name = "batching"

    # Set by tasks.worker before the worker's blueprint is built.
    speaker: Speaker
    limits: BatchLimits  # at the start; later those of the waiting list
    batch_limit_s: float
    on_tick: Callable[["BatchingConsumer", str], None]
    on_long_jobs: Callable[[Sequence[str]], None]

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        consumer.batching = self
        self.consumer = consumer
        self.waiting = WaitingList(self.limits)
        self.reports = Reports(consumer, type(self).on_long_jobs)
        self.lanes = Lanes(consumer)
        self.timers: list[Any] = []
        self._over = JobsOver(self.speaker.store.redis, self._drop)
        self._watchdog = Watchdog(self.batch_limit_s, self._hand_back)
        self._refuse = guard(consumer, self.speaker.store.redis)

    # -- start and stop, in the hub thread ---------------------------------------------------

    def start(self, consumer: Any) -> None:
        self.speaker.is_crowded = self.waiting.is_crowded
        self.speaker.waiting_work_s = self.waiting.work_s
        self.lanes.open()
        if renewal_s := self.lanes.renewal_s():
            self._repeat(renewal_s, self.lanes.renew)
        self._repeat(0.5, self._tick)
        self._tick()

    def stop(self, consumer: Any) -> None:
        """Mirror of ``start``: no new batch, the running one published, the rest handed back.

        Also called when the connection was lost. Then there is nobody to hand back to: what this
        worker held returns to the queues by itself, because nobody renews it.
        """
        timers, self.timers = self.timers, []
        for timer in timers:
            timer.cancel()
        if consumer.blueprint.state == bootsteps.RUN:
            self._watchdog.rest()
            for held in self.waiting.take_all():
                task_ready(held.request)
        else:
            self._finish()
        self.lanes.close()

    def _repeat(self, seconds: float, call: Callable[[], None]) -> None:
        self.timers.append(self.consumer.timer.call_repeatedly(seconds, call))

    def _tick(self) -> None:
        self._watchdog.look()
        type(self).on_tick(self, self.consumer.hostname)

    def _hand_back(self) -> None:
        """What has not begun goes to others, and no batch begins here any more."""
        self.waiting.close()
        unstarted = self.waiting.take_all()
        logger.info("stopping: %d chunks handed back", len(unstarted))
        for held in unstarted:
            hand_back(held.request)
        self.lanes.flush()

    def _finish(self) -> None:
        self._hand_back()
        give_up_at = time.monotonic() + STOP_PATIENCE_S
        while not self.waiting.threads_have_left(1.0) and time.monotonic() < give_up_at:
            # The hub's timers no longer run; the batch must not be taken for lost meanwhile.
            self.lanes.renew()
        self.speaker.is_stopping = True
        # The hub no longer runs call_soon callbacks either.
        self.reports.settle_all()

    # -- receiving, in the hub thread --------------------------------------------------------

    def receive(self, message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
        """Celery's strategy signature. ``ack`` and ``reject`` are not used: those promises run
        their callback with ``call_soon``, which from inside a hub callback means a second later.
        """
        consumer = self.consumer
        request = ChunkRequest(
            message,
            **_decoded(message),
            on_ack=message.ack_log_error,
            on_reject=message.reject_log_error,
            app=consumer.app,
            hostname=consumer.hostname,
            eventer=consumer.event_dispatcher,
            connection_errors=consumer.connection_errors,
            maybe_iso8601=datetime.fromisoformat,  # Celery takes 5 µs for it
        )
        if not isinstance(request.name, str):
            # A header may give the task another name; Celery counts by it, and not right here.
            self._refuse(f"a task's name must be a text, got {request.name!r}", message)
            return
        if request.revoked():
            return
        try:
            (data,) = request.args
            chunk = Chunk.from_json(data)
        except (MalformedMessage, TypeError, ValueError) as error:
            self._refuse(str(error), message)
            return
        task_reserved(request)
        if consumer.event_dispatcher and consumer.event_dispatcher.enabled:
            _tell_received(request)
        held = Held(Waiting(chunk, time.time()), request)
        if chunk.job_id in self._over and not chunk.content:
            self.reports.settle(_cancelled([held]))
        elif self.waiting.add(held):
            consumer.pool.apply_async(self._pull, callback=_nothing)

    # -- in the thread that hears which jobs are over ----------------------------------------

    def _drop(self, job_id: str) -> None:
        if dropped := self.waiting.drop(job_id):
            self.reports.post(_cancelled(dropped))

    # -- pulling, in the pool threads --------------------------------------------------------

    def _pull(self) -> None:
        """Speak batches until nothing waits."""
        try:
            while batch := self.waiting.next_batch():
                self._speak(batch)
        except BaseException:
            self.waiting.thread_failed()
            raise
        if not self.waiting.is_closed:
            self.speaker.idle()

    def _speak(self, batch: list[Held]) -> None:
        started = time.monotonic()
        try:
            cores = None if self.waiting.is_alone() else 1
            self.reports.post(BatchReport(batch, None, started))
            audio_s = sum(held.item.chunk.seconds for held in batch)
            self._watchdog.begin(len(batch), audio_s, self.speaker.tally.rate)
            outcomes = self.speaker.speak([held.item for held in batch], cores)
        except EngineBroken:
            logger.critical("the engine is broken; handing back and stopping", exc_info=True)
            self.reports.post(BatchReport(batch, [], started))
            self.waiting.close()
            # The supervisor starts a fresh process, with a fresh device context.
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            # Whatever stopped the publishing, the chunks must reach another worker.
            logger.exception("a batch of %d could not be published", len(batch))
            self.reports.post(BatchReport(batch, [], started))
            # They come back at once, here or elsewhere; do not spin while the cause lasts.
            time.sleep(RETRY_S)
        else:
            self.reports.post(BatchReport(batch, outcomes, started, time.monotonic() - started))
        finally:
            self._watchdog.end()
            self.waiting.batch_ended()


def strategy(task: Any, app: Any, consumer: Any, **kwargs: Any) -> Callable[..., None]:
    """What Celery asks a task for: the function that takes its messages."""
    receive: Callable[..., None] = consumer.batching.receive
    return receive


def _decoded(message: Any) -> dict[str, Any]:
    """The body of a message like ours, for a ``Request``; of any other Celery takes care, in three
    times as long.
    """
    body, kind = message.body, (message.content_type, message.content_encoding)
    is_plain = kind == ("application/json", "utf-8") and isinstance(body, bytes)
    if is_plain and b"__type__" not in body:
        return {"body": orjson.loads(body), "decoded": True}
    return {}


def _tell_received(request: Request) -> None:
    request.send_event(
        "task-received",
        name=request.name,
        args=request.argsrepr,
        kwargs=request.kwargsrepr,
        root_id=request.root_id,
        parent_id=request.parent_id,
        retries=0,
        eta=None,
        expires=request.expires and request.expires.isoformat(),
    )


def _cancelled(batch: list[Held]) -> BatchReport:
    """Of chunks that never went into a batch, since nobody waits for them."""
    return BatchReport(batch, [Outcome.CANCELLED] * len(batch), time.monotonic())


def _nothing(*args: Any) -> None:
    """The pool wants a callback; outcomes travel as reports instead."""
