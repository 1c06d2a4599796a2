"""The files worker, ``celery -A tasks.files worker``: moves long jobs forward. No torch here.

``advance_job`` collects what was spoken into the data directory, sends the next chunks (never a
whole book: a cancelled job should leave little behind, and others want their turn) and joins the
file at the end. It may run at any time, twice, or not at all for a while: it looks at what is there
and does what is missing, so a lost message or a killed process costs a delay and nothing else.
"""

import threading
import time
import uuid
from dataclasses import replace
from typing import Any

import redis
from celery import Celery, bootsteps, signals
from celery.utils.log import get_logger
from kombu import Queue
from kombu.exceptions import OperationalError

from tasks.celery import ADVANCE, send_chunks
from tasks.events import PREFIX, EventStore, connect
from tasks.jobfiles import JobFiles
from tasks.logs import facts, set_up
from tasks.messages import Job, Piece, State
from tasks.sending import make_chunks
from tasks.settings import Settings

logger = get_logger(__name__)
settings = Settings.from_env()

SWEEP_S = 5.0
# A killed holder blocks its job this long; a step takes milliseconds, joining a book a second.
LOCK_S = 20
# A message of a long job that nobody took for this long is not coming any more.
CHUNK_EXPIRES_S = 3600.0

app = Celery("files")
app.config_from_object("celeryconfig")
app.conf.task_queues = [Queue("files")]
app.conf.task_default_queue = "files"
app.conf.worker_concurrency = 4

# Take the lock, or leave a note for its holder to look once more.
_LOCK = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2]) then return 1 end
redis.call('SET', KEYS[2], 1, 'EX', ARGV[2])
return 0
"""

# Give the lock up, unless somebody left a note meanwhile: then 0, look once more.
_UNLOCK = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 1 end
if redis.call('DEL', KEYS[2]) == 1 then redis.call('EXPIRE', KEYS[1], ARGV[2]) return 0 end
redis.call('DEL', KEYS[1])
return 1
"""


class JobAdvancer:
    """Moves jobs forward, one process or thread per job at a time."""

    def __init__(self, client: "redis.Redis", files: JobFiles) -> None:
        self.redis = client
        self.store = EventStore(client)
        self.files = files
        self._lock = client.register_script(_LOCK)
        self._unlock = client.register_script(_UNLOCK)

    def advance(self, job_id: str) -> None:
        """Do whatever job ``job_id`` needs now. Returns at once if another does it already."""
        token = uuid.uuid4().hex
        keys = [f"{PREFIX}lock:{job_id}", f"{PREFIX}note:{job_id}"]
        if not self._lock(keys=keys, args=[token, LOCK_S]):
            return
        is_done = False
        while not is_done:
            try:
                self._step(job_id)
            finally:
                is_done = bool(self._unlock(keys=keys, args=[token, LOCK_S]))

    def _step(self, job_id: str) -> None:
        saved = self.files.load(job_id)
        if saved is None:
            # Deleted or expired while the message was on its way.
            self.store.forget_job(job_id)
            return
        on_disk, pieces = saved
        job = self.store.job(job_id) or self._restore(on_disk, pieces)
        if on_disk.state.is_final and not job.state.is_final:
            # A restore that was killed between telling of the job and of its end.
            self.store.end(job_id, on_disk.state, on_disk.error or "")
            return
        if job.state.is_final:
            self._close(job, on_disk, pieces)
            return
        collected = self._collect(job)
        if len(collected) == job.count:
            self._finish(job, pieces)
        else:
            self._refill(job, pieces, collected)

    def _restore(self, job: Job, pieces: list[Piece]) -> Job:
        """Tell Redis again about a job it has forgotten, with the chunks that are on disk."""
        logger.info("job restored from disk, Redis lost it", extra=facts(job_id=job.job_id))
        fresh = replace(job, state=State.QUEUED, error=None, finished_at=None)
        self.store.create(fresh, pieces, settings.job_ttl_s)
        for index, n_samples in enumerate(self.files.saved_chunk_samples(job.job_id)):
            self.store.mark_published(job.job_id, index, n_samples)
        for index in self.files.chunk_indexes(job.job_id):
            n_samples = self.files.chunk_samples(job.job_id, index)
            self.store.mark_published(job.job_id, index, n_samples)
        if job.state.is_final:
            self.store.end(job.job_id, job.state, job.error or "")
        restored = self.store.job(job.job_id)
        assert restored is not None
        return restored

    def _collect(self, job: Job) -> set[int]:
        """Bring spoken chunks to disk and out of Redis; returns what is on disk."""
        collected = self.files.chunk_indexes(job.job_id)
        missing = [index for index in range(job.count) if index not in collected]
        published = self.store.published(job.job_id, missing)
        brought = []
        for index, n_samples in zip(missing, published, strict=True):
            if n_samples is None:
                continue
            pcm = self.store.audio(job.job_id, index)
            if pcm is None:
                # Published, but its audio left Redis before it was collected: speak it again.
                self.store.forget_chunk(job.job_id, index)
                continue
            self.files.write_chunk(job.job_id, index, pcm)
            brought.append(index)
        self.store.drop_audio(job.job_id, brought)
        return collected | set(brought)

    def _refill(self, job: Job, pieces: list[Piece], collected: set[int]) -> None:
        """Keep a window of chunks in the queue; send again what seems lost."""
        # While others' chunks wait too, silence means a queue, not a loss.
        patience = 1 if self.store.queues_are_empty() else 10
        in_flight = self.store.in_flight(job.job_id, settings.stall_s * patience)
        room = settings.job_window - len(in_flight - collected)
        wanted = [i for i in range(job.count) if i not in collected and i not in in_flight]
        wanted = wanted[: max(0, room)]
        if wanted:
            send_chunks(self.store, make_chunks(job, pieces, wanted), CHUNK_EXPIRES_S)
            self.store.mark_sent(job.job_id, wanted)
            about = facts(job_id=job.job_id, sent=len(wanted), collected=len(collected))
            logger.info("job moved", extra=about)

    def _finish(self, job: Job, pieces: list[Piece]) -> None:
        n_samples = self.files.assemble(job.job_id, pieces, job.sample_rate)
        about = facts(job_id=job.job_id, chunks=job.count, audio_s=n_samples / job.sample_rate)
        logger.info("job done", extra=about)
        self.store.end(job.job_id, State.DONE)
        ended = self.store.job(job.job_id)
        assert ended is not None
        self._close(ended, job, pieces)

    def _close(self, job: Job, on_disk: Job, pieces: list[Piece]) -> None:
        """Make a job's end durable and drop what it no longer needs."""
        if on_disk.state is not job.state:
            counts = self.store.published(job.job_id, range(job.count))
            whole = [n for n in counts if n is not None]
            self.files.update(job, pieces, whole if job.state is State.DONE else None)
        self.files.drop_chunks(job.job_id)
        self.store.drop_audio(job.job_id, range(job.count))

    def sweep(self) -> None:
        """Look after every job on disk: expired ones go, unfinished ones move."""
        for job_id in self.files.job_ids():
            try:
                self._look_after(job_id)
            except (redis.ConnectionError, redis.TimeoutError, OperationalError):
                raise
            except Exception:
                # A full disk, an unreadable record: one job's trouble is not the others'.
                logger.exception("job cannot be moved forward now", extra=facts(job_id=job_id))

    def _look_after(self, job_id: str) -> None:
        saved = self.files.load(job_id)
        if saved is None:
            return
        on_disk, _ = saved
        if on_disk.created_at < time.time() - settings.job_ttl_s:
            self.files.delete(job_id)
            self.store.forget_job(job_id)
            return
        known = self.store.job(job_id)
        if known is None or not (known.state.is_final and on_disk.state.is_final):
            self.advance(job_id)


_advancer = JobAdvancer(connect(settings.redis_url), JobFiles(settings.data_dir))


@app.task(
    name=ADVANCE,
    autoretry_for=(redis.ConnectionError, redis.TimeoutError, OperationalError),
    retry_backoff=1,
    retry_backoff_max=10,
    max_retries=20,
)
def advance_job(job_id: str) -> None:
    """Move one long job forward."""
    _advancer.advance(job_id)


class Sweep(bootsteps.StartStopStep):
    """Worker bootstep: a thread that looks after all jobs now and then."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
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
                logger.warning("sweep: Redis is away (%s)", error)
            except Exception:
                # The last line of defence of a thread that nothing else would replace.
                logger.exception("sweep")
            if self._stop.wait(SWEEP_S):
                return


app.steps["worker"].add(Sweep)


@signals.setup_logging.connect
def _set_up_logging(**kwargs: Any) -> None:
    set_up(settings, "files")
