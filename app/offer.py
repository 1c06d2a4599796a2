"""What may be asked for: any worker may get any chunk, so only what each of them can do."""

from collections.abc import Iterable, Sequence

from app.errors import Problem
from supertonic.characters import LANGUAGES
from supertonic.voices import VOICES
from tasks.workers import WorkerRecord

LANGUAGE_NAMES = {
    "en": "English",
    "ko": "Korean",
    "es": "Spanish",
    "pt": "Portuguese",
    "fr": "French",
}


def voices_of(workers: Sequence[WorkerRecord]) -> list[str]:
    """The known ones first; without a worker what they are going to be, most likely."""
    served = _in_all(worker.voices for worker in workers)
    known = [voice for voice in VOICES if voice in served or not workers]
    return known + sorted(served - set(VOICES))


def languages_of(workers: Sequence[WorkerRecord]) -> list[str]:
    served = _in_all(worker.languages for worker in workers)
    return [code for code in LANGUAGES if code in served or not workers]


def sample_rate_of(workers: Sequence[WorkerRecord]) -> int:
    """Samples per second of what they speak.

    Raises:
        Problem: 503 where they differ. One sound cannot be made by several of them.
    """
    rates = {worker.sample_rate for worker in workers}
    if len(rates) > 1:
        each = ", ".join(f"{w.name} ({w.model}) at {w.sample_rate}" for w in workers)
        raise Problem(
            503,
            f"The workers have models of different sample rates: {each}. Stop those with another "
            "model than you want.",
            retry_after_s=5,
        )
    return rates.pop()


def _in_all(offers: Iterable[Iterable[str]]) -> set[str]:
    each = [set(offer) for offer in offers]
    return set.intersection(*each) if each else set()
