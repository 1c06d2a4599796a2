"""What the keys of jobs, the channels and the queues are called in Redis.

Keys that belong to one module alone are named there, with the same ``PREFIX``. Scripts make the
same names by themselves (tasks/scripts.py).
"""

# Celery's lists, the most urgent first.
QUEUES = ("high", "normal", "low", "files")

PREFIX = "supertonic:"
# Channel heard by all web processes: look at the job of this id.
BELL = PREFIX + "bell"
# Channel heard by all workers: the job of this id is over.
OVER = PREFIX + "over"
# Sorted set: all long jobs, by the time they were accepted.
JOBS = PREFIX + "jobs"
# Sorted set: the long jobs that have not ended, by the same.
OPEN = PREFIX + "open"
# Hash: counters of the whole service.
TOTALS = PREFIX + "totals"


def job_key(job_id: str) -> str:
    """Hash: the job's record."""
    return f"{PREFIX}job:{job_id}"


def events_key(job_id: str) -> str:
    """Stream: what happened, in order."""
    return f"{PREFIX}events:{job_id}"


def audio_key(job_id: str, index: int) -> str:
    """String: 16-bit samples of one chunk."""
    return f"{PREFIX}audio:{job_id}:{index}"


def work_key(job_id: str) -> str:
    """Hash: what the job still has to come (tasks/demand.py)."""
    return f"{PREFIX}work:{job_id}"


def sent_key(job_id: str) -> str:
    """Sorted set: a long job's chunks, by the time at which they were put into the queue."""
    return f"{PREFIX}sent:{job_id}"
