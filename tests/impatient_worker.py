"""A speech worker that gives its hub thread three seconds: ``celery -A tests.impatient_worker``."""

import tasks.watchdog
import tasks.worker
from benchmarks.null_engine import NullEngine
from tasks.celery import app

__all__ = ["app"]

tasks.watchdog.HUB_LIMIT_S = 3.0
tasks.worker.engine_factory = NullEngine
