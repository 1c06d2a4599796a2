"""How chunk messages become batches inside a real Celery worker.

Celery receives, acknowledges, reports and stops as always; only one thing differs. The chunk
task's ``Strategy`` puts each received request into a waiting list instead of a pool's queue, and
the one pool thread pulls batches from it whenever the device is free.

Two threads meet here. The hub thread (Celery's event loop) owns every Celery and kombu object;
the pool thread owns the device. They exchange work through ``_lock`` and ``hub.call_soon``.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from celery import bootsteps
from celery.worker.request import Request
from celery.worker.state import task_ready, task_reserved
from kombu import Consumer

from tasks.batching import Limits, Waiting, take, wait_until
from tasks.messages import Chunk, Kind, MalformedMessage
from tasks.speaker import Outcome, Speaker

logger = logging.getLogger(__name__)

# Credit of the HIGH lane. It has its own channel, so first chunks never wait for NORMAL credit.
HIGH_PREFETCH = 256
# Pause after a batch that could not be published, for example because Redis is full.
RETRY_S = 1.0
# How long a stop waits for the running batch before it hands everything back.
STOP_PATIENCE_S = 50.0


@dataclass(slots=True, eq=False)
class Held:
    """A received chunk: the scheduler's view of it and Celery's."""

    item: Waiting
    request: Request


class BatchingConsumer(bootsteps.StartStopStep):
    """Consumer bootstep that holds waiting chunks, the HIGH lane and the leases."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    name = "batching"

    # Set by tasks.worker before the worker's blueprint is built.
    speaker: Speaker
    limits: Limits
    on_tick: Callable[["BatchingConsumer", str], None]
    on_long_jobs: Callable[[Sequence[str]], None]

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        consumer.batching = self
        self.consumer = consumer
        self.waiting: list[Held] = []
        self.finished: deque[tuple[list[Held], list[Outcome] | None, float]] = deque()
        self.is_pulling = False
        self.is_stopping = False
        self._lock = threading.Condition()
        self._high: Consumer | None = None
        # The normal consumer leaves HIGH to its own lane and FILES to the files worker.
        consumer.app.amqp.queues.deselect(["high", "files"])

    # -- start and stop, in the hub thread ---------------------------------------------------

    def start(self, consumer: Any) -> None:
        channel = consumer.connection.channel()
        channel.basic_qos(0, HIGH_PREFETCH, False)
        self._high = Consumer(
            channel,
            queues=[consumer.app.amqp.queues["high"]],
            on_message=consumer.create_task_handler(),
            on_decode_error=consumer.on_decode_error,
            accept=consumer.app.conf.accept_content,
        )
        self._high.consume()
        visibility_s = consumer.app.conf.broker_transport_options["visibility_timeout"]
        if consumer.connection.transport.driver_type == "redis":
            consumer.timer.call_repeatedly(visibility_s / 4, self._renew_leases)
        consumer.timer.call_repeatedly(0.5, self._tick)
        self._tick()

    def stop(self, consumer: Any) -> None:
        """Mirror of ``start``: no new batch, the running one published, the rest handed back.

        Also called when the connection was lost. Then there is nobody to hand back to: what this
        worker held returns to the queues by itself, because nobody renews it.
        """
        if consumer.blueprint.state == bootsteps.RUN:
            self._forget_waiting()
        else:
            self._finish()
        if self._high is not None:
            try:
                self._high.cancel()
                self._high.channel.close()
            except consumer.connection_errors as error:
                logger.info("closing the high lane: %s", error)
            self._high = None

    def _forget_waiting(self) -> None:
        with self._lock:
            for held in self.waiting:
                task_ready(held.request)
            self.waiting.clear()

    def _finish(self) -> None:
        with self._lock:
            self.is_stopping = True
            unstarted, self.waiting = self.waiting, []
            self._lock.notify_all()
        logger.info("stopping: %d chunks handed back", len(unstarted))
        for held in unstarted:
            held.request.reject(requeue=True)
            task_ready(held.request)
        give_up_at = time.monotonic() + STOP_PATIENCE_S
        with self._lock:
            while self.is_pulling and time.monotonic() < give_up_at:
                self._lock.wait(1.0)
                # The hub's timers no longer run; the batch must not be taken for lost meanwhile.
                self._renew_leases()
        self.speaker.is_stopping = True
        # The hub no longer runs call_soon callbacks either.
        self._acknowledge_finished()

    # -- receiving, in the hub thread --------------------------------------------------------

    def receive(self, message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
        """Celery's strategy signature. ``ack`` and ``reject`` are not used: those promises run
        their callback with ``call_soon``, which from inside a hub callback means a second later.
        """
        consumer = self.consumer
        request = Request(
            message,
            on_ack=message.ack_log_error,
            on_reject=message.reject_log_error,
            app=consumer.app,
            hostname=consumer.hostname,
            eventer=consumer.event_dispatcher,
            connection_errors=consumer.connection_errors,
        )
        if request.revoked():
            return
        try:
            (data,) = request.args
            chunk = Chunk.from_json(data)
        except (MalformedMessage, TypeError, ValueError) as error:
            logger.error("refused a malformed chunk message: %s", error)
            request.reject(requeue=False)
            return
        task_reserved(request)
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
        with self._lock:
            self.waiting.append(Held(Waiting(chunk, time.time()), request))
            if self.is_pulling:
                self._lock.notify_all()
                return
            self.is_pulling = True
        consumer.pool.apply_async(self._pull, callback=_nothing)

    # -- pulling, in the pool thread ---------------------------------------------------------

    def _pull(self) -> None:
        """Speak batches until nothing waits."""
        while batch := self._next_batch():
            started = time.monotonic()
            self.consumer.hub.call_soon(self._announce_started, batch, started)
            try:
                outcomes = self.speaker.speak([held.item for held in batch])
            except Exception:
                # Whatever stopped the publishing, the chunks must reach another worker.
                logger.exception("a batch of %d could not be published", len(batch))
                self.finished.append((batch, None, 0.0))
                # They come back at once, here or elsewhere; do not spin while the cause lasts.
                time.sleep(RETRY_S)
            else:
                self.finished.append((batch, outcomes, time.monotonic() - started))
            self.consumer.hub.call_soon(self._acknowledge_finished)

    def _next_batch(self) -> list[Held]:
        with self._lock:
            while self.waiting and not self.is_stopping:
                now = time.time()
                items = {id(held.item): held for held in self.waiting}
                batch = take([held.item for held in self.waiting], now, self.limits)
                if batch:
                    chosen = [items[id(item)] for item in batch]
                    taken = {id(held) for held in chosen}
                    self.waiting = [held for held in self.waiting if id(held) not in taken]
                    return chosen
                start_at = wait_until([held.item for held in self.waiting], now, self.limits)
                self._lock.wait(start_at - now)
            self.is_pulling = False
            self._lock.notify_all()
            return []

    # -- after a batch, in the hub thread ----------------------------------------------------

    def _announce_started(self, batch: list[Held], started: float) -> None:
        for held in batch:
            held.request.on_accepted(None, started)

    def _acknowledge_finished(self) -> None:
        while self.finished:
            batch, outcomes, runtime = self.finished.popleft()
            if outcomes is None:
                for held in batch:
                    held.request.reject(requeue=True)
                    task_ready(held.request)
                continue
            for held, outcome in zip(batch, outcomes, strict=True):
                _close(held.request, outcome, runtime)
            long_jobs = {h.item.chunk.job_id for h in batch if h.item.chunk.kind is Kind.LONG}
            if long_jobs:
                type(self).on_long_jobs(sorted(long_jobs))

    # -- timers, in the hub thread -----------------------------------------------------------

    def _renew_leases(self) -> None:
        """Tell the broker that everything held is in good hands, however long it waits here."""
        consumer = self.consumer
        channels = [consumer.task_consumer and consumer.task_consumer.channel]
        channels.append(self._high and self._high.channel)
        now = time.time()
        for channel in channels:
            if not channel or not (tags := list(channel.qos._delivered)):
                continue
            try:
                with channel.conn_or_acquire() as client:
                    # XX: a tag that was acknowledged meanwhile must not come back.
                    client.zadd(channel.unacked_index_key, dict.fromkeys(tags, now), xx=True)
            except consumer.connection_errors as error:
                logger.warning("could not renew leases: %s", error)

    def _tick(self) -> None:
        type(self).on_tick(self, self.consumer.hostname)


def strategy(task: Any, app: Any, consumer: Any, **kwargs: Any) -> Callable[..., None]:
    """What Celery asks a task for: the function that takes its messages."""
    receive: Callable[..., None] = consumer.batching.receive
    return receive


def _close(request: Request, outcome: Outcome, runtime: float) -> None:
    """Acknowledge, then tell Flower how it went."""
    task_ready(request, successful=outcome is Outcome.SPOKEN)
    request.acknowledge()
    if outcome is Outcome.FAILED:
        request.send_event("task-failed", exception="the engine could not speak it", traceback="")
    else:
        request.send_event("task-succeeded", result=outcome.name.lower(), runtime=runtime)


def _nothing(*args: Any) -> None:
    """The pool wants a callback; outcomes travel through ``finished`` instead."""
