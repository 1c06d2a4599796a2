"""A speech worker on the engine that BENCH_ENGINE names: ``celery -A benchmarks.engine_worker``."""

import tasks.worker
from benchmarks.engines import make_engine
from tasks.celery import app

__all__ = ["app"]

tasks.worker.engine_factory = make_engine
