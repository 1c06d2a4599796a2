"""A speech worker on the null engine: ``celery -A benchmarks.null_worker worker``."""

import tasks.worker
from benchmarks.null_engine import NullEngine
from tasks.celery import app

__all__ = ["app"]

tasks.worker.engine_factory = NullEngine
