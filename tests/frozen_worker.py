"""A speech worker that says as its description how many objects Python's collector spares."""

import gc

import tasks.worker
from benchmarks.null_engine import NullEngine
from tasks.celery import app

__all__ = ["app"]


class CountingEngine(NullEngine):
    @property
    def description(self) -> str:  # type: ignore[override]
        return str(gc.get_freeze_count())


tasks.worker.engine_factory = CountingEngine
