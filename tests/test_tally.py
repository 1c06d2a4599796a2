"""What a worker notes about a batch: means, histograms, and log lines with ids."""

import logging
import time
from typing import Any

import pytest

from tasks.measures import (
    BATCH_SIZE,
    FIRST_PUBLISHED,
    LATE,
    PADDING,
    QUEUE_WAIT,
    Measure,
    MeasureReading,
    Meter,
    readings,
)
from tasks.messages import Chunk, Kind, Urgency
from tasks.tally import Done, Tally


def chunk(job_id: str, index: int, kind: Kind = Kind.STREAM, **times: float) -> Chunk:
    now = time.time()
    urgency = Urgency.LOW if kind is Kind.LONG else Urgency.HIGH if index == 0 else Urgency.NORMAL
    known = {"due": now, "seconds": 3.0, "sent_at": now} | times
    fixed: dict[str, Any] = {"text": "Hello.", "voice": "M1", "language": "en", "steps": 2}
    fixed |= {"speed": 1.0, "seed": 0, "count": 3}
    fixed |= {"slices": False, "content": ""}
    return Chunk(job_id=job_id, index=index, kind=kind, urgency=urgency, **fixed, **known)


def found(meter: Meter, measure: Measure, *labels: str) -> MeasureReading:
    """One measure of what has not been sent yet."""
    stored = {
        "|".join((of.name, *names, part)): number
        for (of, names, part), number in meter._counts.items()
    }
    return readings(measure, stored)[labels]


def test_a_batch_is_measured_once_and_each_chunk_in_its_queue() -> None:
    tally = Tally()
    done = [Done(chunk("a", 0), 4.0, 0.5), Done(chunk("b", 1), 2.0, 1.0)]
    tally.add("b1", [*done, Done(chunk("c", 7, Kind.LONG), 3.0, 9.0)], 0.25)
    assert found(tally.meter, BATCH_SIZE).total == 3
    # Twelve seconds if all were as long as the longest, nine of them speech.
    assert found(tally.meter, PADDING).total == pytest.approx(0.25)
    waits = [found(tally.meter, QUEUE_WAIT, queue).total for queue in ("high", "normal", "low")]
    assert waits == [0.5, 1.0, 9.0]
    # A long job has no listener: neither its first chunk nor its lateness is anybody's.
    assert found(tally.meter, FIRST_PUBLISHED).buckets[-1][1] == 1
    assert found(tally.meter, LATE).buckets[-1][1] == 1


def test_late_is_what_comes_after_its_due_time() -> None:
    tally, now = Tally(), time.time()
    tally.add("b1", [Done(chunk("a", 1, due=now - 0.7), 1.0, 0.0)], 0.1)
    took_s = time.time() - now
    tally.add("b2", [Done(chunk("a", 2, due=now + 60), 1.0, 0.0)], 0.1)
    late = found(tally.meter, LATE)
    assert 0.7 <= late.total <= 0.7 + took_s
    assert dict(late.buckets)["0.0"] == 1, "in time"


def test_a_first_slice_is_the_first_sound_of_its_chunk() -> None:
    tally, now = Tally(), time.time()
    sliced = chunk("a", 0, sent_at=now - 0.2)
    tally.first_slice(sliced)
    whole = chunk("b", 0, sent_at=now - 5)
    tally.add("b1", [Done(sliced, 3.0, 0.0), Done(whole, 3.0, 0.0)], 0.1)
    first = found(tally.meter, FIRST_PUBLISHED)
    assert first.buckets[-1][1] == 2, "each job's first sound once"
    assert 5.2 <= first.total <= 5.2 + 2 * (time.time() - now)
    # When its batch is over, the next chunk of that name is measured again.
    tally.end([sliced])
    tally.add("b2", [Done(sliced, 3.0, 0.0)], 0.1)
    assert found(tally.meter, FIRST_PUBLISHED).buckets[-1][1] == 3


def test_every_chunk_has_a_line_with_its_batch(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tasks.tally"):
        done = [Done(chunk("a", 0), 4.0, 0.5), Done(chunk("b", 1), 2.0, 1.0)]
        Tally().add("b1", done, 0.25)
    batch, *lines = [record.facts for record in caplog.records]  # type: ignore[attr-defined]
    assert batch == {"batch_id": "b1", "chunks": 2, "engine_s": 0.25, "audio_s": 6.0}
    assert [(line["job_id"], line["chunk"], line["batch_id"]) for line in lines] == [
        ("a", 0, "b1"),
        ("b", 1, "b1"),
    ]
    assert "Hello." not in caplog.text
