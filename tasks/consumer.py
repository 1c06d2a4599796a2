"""How chunk messages become batches inside a real Celery worker.

Celery receives, acknowledges, reports and stops as always; only one thing differs. The chunk
task's ``Strategy`` puts each received request into a waiting list instead of a pool's queue, and
the pool's threads pull batches from it: one for each core of a CPU, or a single one for a GPU.

The hub thread (Celery's event loop) owns every Celery and kombu object; the pool threads own the
device. They exchange work through ``_lock`` and ``hub.call_soon``.
"""

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import redis
from celery import bootsteps
from celery.worker.request import Request
from celery.worker.state import task_ready, task_reserved
from kombu import Consumer

from tasks.batching import BatchLimits, Waiting, take, wait_until
from tasks.messages import Chunk, Kind, MalformedMessage
from tasks.over import JobsOver
from tasks.pace import work
from tasks.refusing import guard
from tasks.speaker import EngineBroken, Outcome, Speaker
from tasks.transport import Channel, QoS, Transport
from tasks.watchdog import Watchdog

logger = logging.getLogger(__name__)

# Each queue has a channel and a credit of its own, so first chunks never wait for NORMAL credit,
# and long jobs are not starved by it: the order among them all is decided in tasks/batching.py.
# NORMAL is the worker's own consumer, its credit is in celeryconfig.py.
LANES = {"high": 256, "low": 32}
# Pause after a batch that could not be published, for example because Redis is full.
RETRY_S = 1.0
# The clock may be set meanwhile; and Python cannot wait until a year that a message may name.
LOOK_S = 1.0
# How long a stop waits for the running batch before it hands everything back.
STOP_PATIENCE_S = 50.0


class ChunkRequest(Request):
    """A request whose times are in UTC. Celery would look the time zone up in its configuration
    for every message, a seventh of what receiving one costs.
    """

    _tzlocal = UTC


@dataclass(slots=True, eq=False)
class Held:
    """A received chunk: the scheduler's view of it and Celery's."""

    item: Waiting
    request: Request


@dataclass(slots=True)
class Report:
    """What a pool thread tells the hub thread about a batch.

    ``outcomes`` is None for a batch that has only begun, and empty for one that must be handed
    back because it could not be published.
    """

    batch: list[Held]
    outcomes: list[Outcome] | None
    started: float
    runtime: float = 0.0


class BatchingConsumer(bootsteps.StartStopStep):
    """Consumer bootstep that holds waiting chunks, the lanes beside NORMAL, and the leases."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    name = "batching"

    # Set by tasks.worker before the worker's blueprint is built.
    speaker: Speaker
    limits: BatchLimits
    batch_limit_s: float
    on_tick: Callable[["BatchingConsumer", str], None]
    on_long_jobs: Callable[[Sequence[str]], None]

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        consumer.batching = self
        self.consumer = consumer
        self.waiting: list[Held] = []
        self.reports: deque[Report] = deque()
        self.pulling = 0  # pool threads at work
        self.speaking: dict[int, list[Chunk]] = {}  # by thread, what is being spoken
        self.is_stopping = False
        self._lock = threading.Condition()
        self.lanes: list[Consumer] = []
        self.timers: list[Any] = []
        self._over = JobsOver(self.speaker.store.redis, self._drop)
        self._watchdog = Watchdog(self.batch_limit_s, self._hand_back)
        self._refuse = guard(consumer, self.speaker.store.redis)
        # The normal consumer leaves these to their own lanes and FILES to the files worker.
        consumer.app.amqp.queues.deselect([*LANES, "files"])

    # -- start and stop, in the hub thread ---------------------------------------------------

    def start(self, consumer: Any) -> None:
        type(self).speaker.is_crowded = self._is_crowded
        type(self).speaker.waiting_work_s = self._waiting_work_s
        for name, credit in LANES.items():
            channel = consumer.connection.channel()
            channel.basic_qos(0, credit, False)
            lane = Consumer(
                channel,
                queues=[consumer.app.amqp.queues[name]],
                on_message=consumer.create_task_handler(),
                on_decode_error=consumer.on_decode_error,
                accept=consumer.app.conf.accept_content,
            )
            lane.consume()
            self.lanes.append(lane)
            if name == "high" and isinstance(channel, Channel):
                # No later chunk comes to hand before the first chunk of its own request.
                consumer.task_consumer.channel.ahead = channel
        transport = consumer.connection.transport
        # While the hub runs, the claim channel renews by itself.
        if transport.driver_type == "redis" and not isinstance(transport, Transport):
            visibility_s = consumer.app.conf.broker_transport_options["visibility_timeout"]
            self._repeat(visibility_s / 4, self._renew_leases)
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
            self._forget_waiting()
        else:
            self._finish()
        lanes, self.lanes = self.lanes, []
        for lane in lanes:
            try:
                lane.cancel()
                lane.channel.close()
            except consumer.connection_errors as error:
                logger.info("closing a lane: %s", error)

    def _repeat(self, seconds: float, call: Callable[[], None]) -> None:
        self.timers.append(self.consumer.timer.call_repeatedly(seconds, call))

    def _forget_waiting(self) -> None:
        with self._lock:
            for held in self.waiting:
                task_ready(held.request)
            self.waiting.clear()

    def _hand_back(self) -> None:
        """What has not begun goes to others, and no batch begins here any more."""
        with self._lock:
            self.is_stopping = True
            unstarted, self.waiting = self.waiting, []
            self._lock.notify_all()
        logger.info("stopping: %d chunks handed back", len(unstarted))
        for held in unstarted:
            held.request.reject(requeue=True)
            task_ready(held.request)
        self._flush_channels()

    def _finish(self) -> None:
        self._hand_back()
        give_up_at = time.monotonic() + STOP_PATIENCE_S
        with self._lock:
            while self.pulling and time.monotonic() < give_up_at:
                self._lock.wait(1.0)
                # The hub's timers no longer run; the batch must not be taken for lost meanwhile.
                self._renew_leases()
        self.speaker.is_stopping = True
        # The hub no longer runs call_soon callbacks either.
        self._hear_reports()

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
            self._settle(Report([held], [Outcome.CANCELLED], time.monotonic()))
            return
        with self._lock:
            self.waiting.append(held)
            self._lock.notify_all()
            if self.pulling == self.speaker.engine.batches_at_once:
                return
            self.pulling += 1
        consumer.pool.apply_async(self._pull, callback=_nothing)

    # -- dropping, in the thread that hears which jobs are over ------------------------------

    def _drop(self, job_id: str) -> None:
        """Nobody waits for this job's chunks any more, except that those with a content key may be
        wanted by other jobs: about these Redis is asked when a batch is formed.
        """

        def is_dropped(held: Held) -> bool:
            return held.item.chunk.job_id == job_id and not held.item.chunk.content

        with self._lock:
            dropped = [held for held in self.waiting if is_dropped(held)]
            if not dropped:
                return
            self.waiting = [held for held in self.waiting if not is_dropped(held)]
        self._report(Report(dropped, [Outcome.CANCELLED] * len(dropped), time.monotonic()))

    # -- pulling, in the pool threads --------------------------------------------------------

    def _pull(self) -> None:
        """Speak batches until nothing waits."""
        try:
            while batch := self._next_batch():
                self._speak(batch)
        except BaseException:
            # Otherwise this core would count as busy for ever.
            with self._lock:
                self.pulling -= 1
            raise
        if not self.is_stopping:
            self.speaker.idle()

    def _speak(self, batch: list[Held]) -> None:
        started = time.monotonic()
        try:
            cores = None if self._is_alone() else 1
            self._report(Report(batch, None, started))
            audio_s = sum(held.item.chunk.seconds for held in batch)
            self._watchdog.begin(len(batch), audio_s, self.speaker.tally.rate)
            outcomes = self.speaker.speak([held.item for held in batch], cores)
        except EngineBroken:
            logger.critical("the engine is broken; handing back and stopping", exc_info=True)
            self._report(Report(batch, [], started))
            self.is_stopping = True
            # The supervisor starts a fresh process, with a fresh device context.
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            # Whatever stopped the publishing, the chunks must reach another worker.
            logger.exception("a batch of %d could not be published", len(batch))
            self._report(Report(batch, [], started))
            # They come back at once, here or elsewhere; do not spin while the cause lasts.
            time.sleep(RETRY_S)
        else:
            self._report(Report(batch, outcomes, started, time.monotonic() - started))
        finally:
            self._watchdog.end()
            with self._lock:
                del self.speaking[threading.get_ident()]
                # Some may have let this batch finish first.
                self._lock.notify_all()

    def _report(self, report: Report) -> None:
        self.reports.append(report)
        self.consumer.hub.call_soon(self._hear_reports)

    def _next_batch(self) -> list[Held]:
        with self._lock:
            while self.waiting and not self.is_stopping:
                now = time.time()
                beside = list(self.speaking.values())
                items = {id(held.item): held for held in self.waiting}
                batch = take([held.item for held in self.waiting], now, self.limits, beside)
                if batch:
                    chosen = [items[id(item)] for item in batch]
                    taken = {id(held) for held in chosen}
                    self.waiting = [held for held in self.waiting if id(held) not in taken]
                    chunks = [item.chunk for item in batch]
                    self.speaking[threading.get_ident()] = chunks
                    # Before anybody else chooses, or two would take the turn of the long jobs.
                    self.speaker.pace.took(chunks, now)
                    return chosen
                waiting = [held.item for held in self.waiting]
                start_at = wait_until(waiting, now, self.limits, beside)
                self._lock.wait(min(start_at - now, LOOK_S))
            self.pulling -= 1
            self._lock.notify_all()
            return []

    def _is_alone(self) -> bool:
        """Whether this thread's batch may have all cores: nobody is beside it, and nobody else
        goes before it is done.
        """
        with self._lock:
            if len(self.speaking) > 1:
                return False
            chunks, now = self.speaking[threading.get_ident()], time.time()
            next_at = wait_until([held.item for held in self.waiting], now, self.limits, [chunks])
        return next_at > now + self.limits.pace.cost.of([work(chunk) for chunk in chunks])

    def _is_crowded(self) -> bool:
        """Whether chunks wait that a listener needs now."""
        now = time.time()
        with self._lock:
            return any(
                held.item.chunk.due <= now and held.item.chunk.kind is not Kind.LONG
                for held in self.waiting
            )

    def _waiting_work_s(self) -> float:
        with self._lock:
            return sum(work(held.item.chunk) for held in self.waiting)

    # -- around a batch, in the hub thread ---------------------------------------------------

    def _hear_reports(self) -> None:
        while self.reports:
            report = self.reports.popleft()
            try:
                self._settle(report)
            except redis.RedisError as error:
                # Above all a full Redis, which refuses an acknowledgement too. What is settled
                # has left the batch; the rest is tried again.
                logger.warning("could not settle a batch (%s), trying again", error)
                self.reports.appendleft(report)
                self.consumer.timer.call_after(RETRY_S, self._hear_reports)
                return

    def _settle(self, report: Report) -> None:
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
                request.reject(requeue=True)
                task_ready(request)
            report.batch.pop(0)
        if jobs and is_published:
            type(self).on_long_jobs(sorted(jobs))

    # -- timers, in the hub thread -----------------------------------------------------------

    def _renew_leases(self) -> None:
        """Tell Redis that everything held is in good hands, however long it waits here."""
        consumer = self.consumer
        if consumer.connection.transport.driver_type != "redis":
            return
        for channel in self._channels():
            try:
                if isinstance(channel.qos, QoS):
                    channel.qos.renew()
                elif tags := list(channel.qos._delivered):
                    with channel.conn_or_acquire() as client:
                        # XX: a tag that was acknowledged meanwhile must not come back.
                        leases = dict.fromkeys(tags, time.time())
                        client.zadd(channel.unacked_index_key, leases, xx=True)
            except consumer.connection_errors as error:
                logger.warning("could not renew leases: %s", error)

    def _flush_channels(self) -> None:
        """Have the claim channels tell Redis now: there is no next poll that would."""
        for channel in self._channels():
            if isinstance(channel.qos, QoS):
                channel.flush()

    def _channels(self) -> list[Any]:
        consumers = [self.consumer.task_consumer, *self.lanes]
        return [consumer.channel for consumer in consumers if consumer and consumer.channel]

    def _tick(self) -> None:
        self._watchdog.look()
        type(self).on_tick(self, self.consumer.hostname)


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


def _nothing(*args: Any) -> None:
    """The pool wants a callback; outcomes travel as reports instead."""
