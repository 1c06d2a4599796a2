"""A speech worker that makes two batches at a time: ``celery -A tests.two_core_worker worker``."""

import tasks.worker
from benchmarks.null_engine import NullEngine
from tasks.celery import app

__all__ = ["app"]


class TwoCores(NullEngine):
    batches_at_once = 2


tasks.worker.engine_factory = TwoCores
