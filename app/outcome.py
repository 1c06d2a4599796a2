"""How a job ended, as a problem where it ended badly, and a job followed until it is done."""

from collections.abc import Iterator

from app.care import STOPPED
from app.encoding import Encoder
from app.errors import Problem
from app.follow import Ended, Gap, Item, follow
from app.jobs import Speech
from tasks.messages import Job, Piece, State

# When to try again where a part of the service was away.
RETRY_S = 5


class Cancelled(Problem):
    """Somebody ended the job before it was done."""

    def __init__(self, job: Job) -> None:
        super().__init__(409, "The job was cancelled.", job_id=job.job_id)


def until_done(
    speech: Speech,
    job: Job,
    pieces: list[Piece],
    *,
    with_audio: bool = True,
    encoder: Encoder | None = None,
) -> Iterator[Item]:
    """What ``follow`` yields of a job up to its good end, for a listener who wants all of it or
    nothing. Of a stream nobody can ask for the audio again.

    Raises:
        Cancelled: the job was cancelled.
        Problem: it failed, the audio of a chunk is no longer kept, or this process ends before it.
    """
    for item in follow(
        speech, job, pieces, with_audio=with_audio, may_return=False, encoder=encoder
    ):
        match item:
            case Gap():
                raise failure(job, f"The audio of chunk {item.index} is no longer kept.")
            case Ended(state=State.CANCELLED):
                raise Cancelled(job)
            case Ended(state=State.FAILED):
                raise failure(job, item.error, item.status)
            case Ended():
                return
        yield item
    # The job goes on without this process; what there is of it must not be taken for the whole.
    raise failure(job, STOPPED, 503)


def failure(job: Job, error: str, status: int = 500) -> Problem:
    """Why a job failed, for any kind of answer."""
    retry_after_s = RETRY_S if status == 503 else None
    detail = error or "The job failed."
    return Problem(status, detail, retry_after_s=retry_after_s, job_id=job.job_id)
