"""The files worker, ``celery -A tasks.files worker``: its tasks, and the sweep. No torch here.

Long jobs move forward by messages, and by a look at all of them every few seconds, so that no
message is needed (tasks/advancing.py). Books are made when somebody asks (tasks/m4b.py).
"""

import re
import threading
from collections.abc import Callable
from typing import Any

import redis
from celery import Celery, bootsteps, signals
from celery.utils.log import get_logger
from celery.worker.strategy import default
from kombu import Queue
from kombu.exceptions import OperationalError

from tasks.advancing import JobAdvancer
from tasks.celery import ADVANCE, DELIVER, MAKE_BOOK
from tasks.events import connect
from tasks.jobfiles import JobFiles
from tasks.logs import set_up
from tasks.m4b import BookMaker
from tasks.messages import MalformedMessage
from tasks.places import PlaceAway
from tasks.refusing import guard
from tasks.settings import Settings

logger = get_logger(__name__)
settings = Settings.from_env()

SWEEP_S = 5.0
# Of the five threads below; webhooks and uploads have three more (tasks/advancing.py).
BOOKS_AT_ONCE = 1

# What is used of a message's headers. Celery trusts them all, also those that would end a thread
# without a word or send other tasks.
HEADERS = dict.fromkeys(
    ("task", "id", "root_id", "parent_id", "eta", "expires", "argsrepr", "kwargsrepr"), str
) | {"retries": int}
JOB_ID = re.compile(r"[\w-]{1,64}", re.ASCII)
STRATEGY = "tasks.files:strategy"

app = Celery("files", amqp="tasks.connection:AMQP")
app.config_from_object("celeryconfig")
app.conf.task_queues = [Queue("files")]
app.conf.task_default_queue = "files"
app.conf.worker_concurrency = 5


_client, _files = connect(settings.redis_url), JobFiles(settings.data_dir, settings.jobs_url)
_advancer = JobAdvancer(_client, _files, settings)
_book_maker = BookMaker(_client, _files, BOOKS_AT_ONCE)


@app.task(
    name=ADVANCE,
    Strategy=STRATEGY,
    autoretry_for=(redis.ConnectionError, redis.TimeoutError, OperationalError),
    retry_backoff=1,
    retry_backoff_max=10,
    max_retries=20,
)
def advance_job(job_id: str) -> None:
    """Move one long job forward."""
    _advancer.advance(job_id)


@app.task(name=DELIVER, Strategy=STRATEGY)
def deliver_webhook(job_id: str) -> None:
    """Make one attempt to tell a job's webhook. The sweep sends the next when it is due."""
    _advancer.deliver(job_id)


@app.task(name=MAKE_BOOK, Strategy=STRATEGY)
def make_book(job_id: str) -> None:
    """Make the M4B of a job that is done."""
    _book_maker.make(job_id)


def strategy(task: Any, app: Any, consumer: Any, **kwargs: Any) -> Callable[..., None]:
    """What Celery asks a task for: its own, for messages with a job's id and nothing else."""
    handle = default(task, app, consumer, **kwargs)

    def receive(message: Any, *rest: Any) -> None:
        check(message)
        handle(message, *rest)

    return receive


def check(message: Any) -> None:
    """Leave only those of the headers that are used.

    Raises:
        MalformedMessage: not a message of ours.
    """
    match message.payload:
        case [[str(job_id)], {**named}, {**links}] if JOB_ID.fullmatch(job_id):
            if named or any(links.values()):
                raise MalformedMessage("expected nothing but a job's id")
        case _:
            raise MalformedMessage("expected a job's id")
    used = {name: message.headers[name] for name in HEADERS if message.headers.get(name)}
    for name, value in used.items():
        if not isinstance(value, HEADERS[name]):
            raise MalformedMessage(f"{name}: cannot be a {type(value).__name__}")
    message.headers = used


class Refusing(bootsteps.Step):
    """Consumer bootstep: what nobody can use becomes a dead letter."""

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        guard(consumer, _client)


class Sweep(bootsteps.StartStopStep):
    """Worker bootstep: a thread that looks after all jobs now and then."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        try:
            _advancer.files.check_writable()
        except (OSError, PlaceAway) as error:
            raise SystemExit(
                f"The files worker cannot start: jobs cannot be kept: {error}"
            ) from None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweep", daemon=True)

    def start(self, worker: Any) -> None:
        self._thread.start()

    def stop(self, worker: Any) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while True:
            try:
                _advancer.sweep()
            except (redis.RedisError, OperationalError) as error:
                logger.warning("sweep: Redis or the queue is away (%s)", error)
            except Exception:
                # The last line of defence of a thread that nothing else would replace.
                logger.exception("sweep")
            if self._stop.wait(SWEEP_S):
                return


app.steps["worker"].add(Sweep)
app.steps["consumer"].add(Refusing)


@signals.setup_logging.connect
def _set_up_logging(**kwargs: Any) -> None:
    set_up(settings, "files")
