"""A long job's sound grows chunk by chunk: in any order, through any death, each sample once."""

import json
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.idempotency import IdempotencyKeys
from tasks.jobfiles import JobFiles
from tasks.jobsound import SOUND, Recorder, loose_chunks, read_index
from tasks.messages import Kind, Piece
from tests.examples import a_job, some_pieces
from tests.sse import samples_of
from tests.stack import ROOT

RATE = 44_100


def pcm(index: int) -> bytes:
    """Chunk ``index``: 100 + index samples of that value."""
    return np.full(100 + index, index + 1, "<i2").tobytes()


def whole(pieces: list[Piece]) -> np.ndarray:
    parts = [pcm(i) + bytes(2 * round(p.pause_s * RATE)) for i, p in enumerate(pieces)]
    return np.frombuffer(b"".join(parts), "<i2")


@given(order=st.permutations(range(6)), cuts=st.sets(st.integers(1, 5)))
@settings(max_examples=40, deadline=None)
def test_any_order_and_any_steps_give_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], cuts: set[int]
) -> None:
    folder, pieces = tmp_path_factory.mktemp("job"), some_pieces(6)
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 6], strict=True):
        with Recorder(folder, pieces, RATE) as recorder:
            for index in order[start:end]:
                recorder.add(index, pcm(index))
        here = set(order[:end])
        prefix = next(i for i in range(7) if i not in here)
        assert len(read_index(folder)) == prefix, "appended up to the first gap"
        assert loose_chunks(folder) == {i for i in here if i > prefix}, "nothing is kept twice"
    with Recorder(folder, pieces, RATE) as recorder:
        recorder.finish()
    assert np.array_equal(samples_of((folder / SOUND).read_bytes(), RATE), whole(pieces))


@pytest.mark.parametrize("seed", range(8))
def test_whatever_a_dying_writer_left_the_next_one_goes_on(tmp_path: Path, seed: int) -> None:
    """Half-written sound behind the index, a torn index entry, a chunk file not yet removed."""
    dice, pieces = random.Random(seed), some_pieces(5)
    with Recorder(tmp_path, pieces, RATE) as recorder:
        for index in (0, 1, 3):
            recorder.add(index, pcm(index))
    with (tmp_path / SOUND).open("ab") as file:
        file.write(bytes(dice.choice([1, 5000, 500_000])))
    with (tmp_path / "chunks.idx").open("ab") as index_file:
        index_file.write(bytes(dice.randrange(1, 60)))
    (tmp_path / "00001.pcm").write_bytes(pcm(1))
    with Recorder(tmp_path, pieces, RATE) as recorder:
        assert recorder.collected == {0, 1, 3}
        for index in (2, 4):
            recorder.add(index, pcm(index))
    with Recorder(tmp_path, pieces, RATE) as recorder:
        assert len(recorder.entries) == 5
        recorder.finish()
    sound = (tmp_path / SOUND).read_bytes()
    assert np.array_equal(samples_of(sound, RATE), whole(pieces))
    assert len(sound) == 44 + 2 * len(whole(pieces)), "nothing is left behind the end"


def test_sound_that_was_lost_is_not_taken_for_silence(tmp_path: Path) -> None:
    pieces = some_pieces(3)
    with Recorder(tmp_path, pieces, RATE) as recorder:
        for index in range(3):
            recorder.add(index, pcm(index))
    (tmp_path / SOUND).unlink()
    with Recorder(tmp_path, pieces, RATE) as recorder:
        assert recorder.collected == set(), "everything is to be spoken again"


def test_the_sound_is_durable_before_the_index_tells_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Append, fsync, index, fsync; only then a chunk's own file goes."""
    fsync, steps = os.fsync, []

    def note(descriptor: int) -> None:
        (name,) = [
            path.name
            for path in tmp_path.iterdir()
            if os.path.samestat(path.stat(), os.fstat(descriptor))
        ]
        size = (tmp_path / SOUND).stat().st_size
        steps.append((name, size, len(read_index(tmp_path)), loose_chunks(tmp_path)))
        fsync(descriptor)

    # Without pauses: what is small is kept back in the program until it is flushed.
    pieces = [Piece(f"Piece number {n}.", 0.0) for n in range(3)]
    with Recorder(tmp_path, pieces, RATE) as recorder:
        recorder.add(1, pcm(1))
    monkeypatch.setattr(os, "fsync", note)
    sizes = [44 + 2 * len(whole(pieces[:n])) for n in range(4)]
    with Recorder(tmp_path, pieces, RATE) as recorder:
        recorder.add(0, pcm(0))
    assert steps == [(SOUND, sizes[2], 0, {1}), ("chunks.idx", sizes[2], 2, {1})]
    assert loose_chunks(tmp_path) == set()
    steps.clear()
    with Recorder(tmp_path, pieces, RATE) as recorder:
        recorder.add(2, pcm(2))
    assert steps == [(SOUND, sizes[3], 2, set()), ("chunks.idx", sizes[3], 3, set())]


def test_an_unfinished_step_leaves_what_was_durable(tmp_path: Path) -> None:
    pieces = some_pieces(3)
    with Recorder(tmp_path, pieces, RATE) as recorder:
        recorder.add(0, pcm(0))
    with pytest.raises(OSError, match="disk"), Recorder(tmp_path, pieces, RATE) as recorder:
        recorder.add(1, pcm(1))
        raise OSError("disk full")
    with Recorder(tmp_path, pieces, RATE) as recorder:
        assert recorder.collected == {0}


def test_chunks_can_be_read_wherever_they_are(tmp_path: Path) -> None:
    files, job, pieces = JobFiles(tmp_path), a_job("job", 5), some_pieces(5)
    files.save(job, pieces)
    with files.record("job", pieces, RATE) as recorder:
        for index in (0, 1, 3):
            recorder.add(index, pcm(index))
    read = [files.read_chunk("job", index) for index in range(5)]
    assert read == [pcm(0), pcm(1), None, pcm(3), None]
    assert files.chunk_lengths("job") == {0: 100, 1: 101, 3: 103}
    assert files.spoken_samples("job") == 201 + 2 * round(0.3 * RATE)


def test_only_one_at_a_time_has_a_job(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    files.save(a_job("job"), some_pieces(1))
    with files.alone("job") as first, files.alone("job") as second:
        assert (first, second) == (True, False)
    with files.alone("job") as again:
        assert again
    with pytest.raises(FileNotFoundError), files.alone("other"):
        pass


def test_a_pause_is_remembered_until_the_job_ends(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    files.save(a_job("job"), some_pieces(1))
    files.set_paused("job", True)
    files.set_paused("job", True)
    assert files.load("job")[0].state == "paused"
    files.set_paused("job", False)
    files.set_paused("job", False)
    assert files.load("job")[0].state == "queued"


def test_a_job_that_another_version_wrote_is_read(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    files.save(a_job("job"), some_pieces(1))
    path = tmp_path / "jobs" / "job" / "job.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"of_tomorrow": 1}))
    job, pieces = files.load("job")
    assert (job.job_id, pieces) == ("job", some_pieces(1))


def test_a_job_is_read_in_any_locale(tmp_path: Path) -> None:
    text = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich."
    JobFiles(tmp_path).save(a_job("job"), [Piece(text, 0.3)])
    read = "import sys; from tasks.jobfiles import JobFiles; "
    read += "print(ascii(JobFiles(sys.argv[1]).load('job')[1][0].text))"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", read, str(tmp_path)]
    answer = subprocess.run(command, env=os.environ | plain, cwd=ROOT, capture_output=True)
    assert answer.stdout.decode().strip() == ascii(text), answer.stderr.decode()[-300:]


def test_folders_that_others_remove_meanwhile_stop_no_sweep(tmp_path: Path) -> None:
    files, keys = JobFiles(tmp_path), IdempotencyKeys(tmp_path)
    for n in range(2000):
        path = files.make_folder(f"orphan{n:04}")
        os.utime(path, (0, 0))
        with keys.claim("", f"key{n}"):
            pass
    both = [(files.delete_orphans, files.root), (lambda: keys.delete_old(-1), keys.root)]
    for sweep, root in both:
        gate = threading.Barrier(3)

        def run(sweep=sweep, gate=gate) -> None:
            gate.wait(10)
            sweep()

        with ThreadPoolExecutor(3) as pool:
            for sweeping in [pool.submit(run) for _ in range(3)]:
                sweeping.result(60)
        assert list(root.iterdir()) == []


def test_a_deleted_job_is_never_written_back(tmp_path: Path) -> None:
    """The files worker may be closing a job at the moment its owner deletes it."""
    files = JobFiles(tmp_path)
    for _ in range(300):
        files.save(a_job(kind=Kind.LONG), some_pieces(1))
        closing = threading.Thread(target=write_on, args=(files,))
        closing.start()
        files.delete("job")
        closing.join()
        assert not files.folder("job").exists()


def write_on(files: JobFiles) -> None:
    for _ in range(3):
        files.update(a_job(kind=Kind.LONG), some_pieces(1))
