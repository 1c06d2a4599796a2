"""Finished sound at a URL instead of on disk: any that fsspec knows; here file:// and memory://."""

import subprocess
import sys
import threading
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis

from supertonic.audio import wav_bytes
from tasks.jobfiles import JobFiles
from tasks.places import Place, PlaceAway, open_at
from tasks.settings import Settings, SettingsError
from tests.examples import a_job, some_pieces
from tests.sse import joined, read_events, samples_of
from tests.stack import ROOT, Stack, wait_for

RATE = 44_100
PCM = np.arange(1000, dtype="<i2").tobytes()


def finished(files: JobFiles) -> None:
    files.save(a_job("job", 2), some_pieces(2))
    with files.record("job", some_pieces(2), RATE) as recorder:
        recorder.add(0, PCM)
        recorder.add(1, PCM)
        recorder.commit()
        recorder.finish()


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/archive/of/jobs"
    return f"memory://{uuid.uuid4().hex}/jobs/"


def test_sound_goes_there_is_read_from_there_and_is_removed_there(url: str, tmp_path: Path) -> None:
    files = JobFiles(tmp_path / "data", url)
    files.check_writable()
    finished(files)
    here = tmp_path / "data" / "jobs" / "job" / "audio.wav"
    files.store("job")
    assert here.exists(), "kept until the job's end is durable"
    files.drop_copy("job")
    assert not here.exists()
    # A process with another setting, or none, finds it as well.
    later = JobFiles(tmp_path / "data")
    found = later.open_sound("job")
    assert found is not None
    pause = bytes(2 * round(0.3 * RATE))
    with found[0] as sound:
        content = sound.read()
    assert content == wav_bytes((PCM + pause) * 2, RATE) and len(content) == found[1]
    assert later.read_chunk("job", 1) == PCM
    later.delete("job")
    assert later.open_sound("job") is None and not here.parent.exists()


def test_sound_in_the_data_directory_stays_there(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    files.check_writable()
    finished(files)
    files.store("job")
    files.drop_copy("job")
    assert files.stored_url("job") == "" and files.read_chunk("job", 1) == PCM


def test_a_place_that_cannot_be_written_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PlaceAway, match="file://.*file/jobs: .*Error"):
        Place(f"file://{tmp_path}/file/jobs").check()


@pytest.mark.parametrize("url", ["nothing://known", "s3://bucket/prefix"])
def test_a_url_that_nothing_installed_can_open_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=f"SUPERTONIC_JOBS_URL='{url}'.*(known|s3fs)"):
        Place(url)


@pytest.mark.parametrize("url", ["nothing://anna:hush@there/jobs", "s3://anna:hush@bucket/jobs"])
def test_a_refused_url_is_shown_without_user_and_password(url: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Place(url)
    told = str(raised.value)
    assert "anna" not in told and "hush" not in told and url.replace("anna:hush@", "") in told


def test_a_job_tells_of_a_place_that_is_away_without_user_and_password(
    client: redis.Redis, tmp_path: Path
) -> None:
    from tasks.advancing import JobAdvancer

    client.flushall()
    # webhdfs:// takes a login and needs nothing installed; nobody listens on that port.
    files = JobFiles(tmp_path / "data", "webhdfs://anna:hush@127.0.0.1:9/jobs")
    with pytest.raises(PlaceAway) as raised:
        files.check_writable()
    finished(files)
    advancer = JobAdvancer(client, files, Settings())
    advancer.store.create(a_job("job", 2), some_pieces(2), 60)
    advancer.advance("job")
    job = advancer.store.job("job")
    assert job is not None and job.error is not None
    for told in (str(raised.value), job.error):
        assert "webhdfs://127.0.0.1:9/jobs: ConnectionError" in told
        assert "anna" not in told and "hush" not in told


def test_without_fsspec_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['fsspec'] = None; from tasks.places import Place; Place('s3://a')"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "pip install 'supertonic-server[storage]'" in ended.stderr.splitlines()[-1]


def test_nothing_of_it_is_needed_without_such_a_url() -> None:
    code = "import sys; sys.modules['fsspec'] = None; import app, tasks.files"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_jobs_end_at_the_url_and_are_served_from_there(stack: Stack) -> None:
    archive = stack.folder / "archive"
    stack.env["SUPERTONIC_JOBS_URL"] = f"file://{archive}"
    stack.start_all()
    wait_for(lambda: files_worker_serves(stack), 60, "it has looked at the place")
    archive.rename(stack.folder / "away")
    archive.write_text("in the way")
    text = "\n\n".join(f"Paragraph number {n}." for n in range(6))
    path = f"/jobs/{stack.post('/synthesize/long', {'text': text, 'seed': 4}).json()['job_id']}"
    told = wait_for(lambda: stack.get(path).json()["error"], 60, "the reason why it waits")
    assert "cannot be stored yet" in told and stack.get(path).json()["state"] == "running"
    archive.unlink()
    (stack.folder / "away").rename(archive)
    wait_for(lambda: stack.get(path).json()["state"] == "done", 60)
    assert stack.get(path).json()["error"] is None
    stored = archive / f"{path.removeprefix('/jobs/')}.wav"
    wait_for(lambda: not (stack.data_dir / path[1:] / "audio.wav").exists(), what="no copy is left")
    whole = stack.get(f"{path}/audio")
    assert whole.content == stored.read_bytes()
    part = stack.get(f"{path}/audio", headers={"Range": "bytes=1000-1999"})
    assert part.status_code == 206 and part.content == whole.content[1000:2000]
    with stack.get(f"{path}/events", stream=True) as response:
        assert np.array_equal(joined(read_events(response)), samples_of(whole.content))
    stored.rename(archive / "elsewhere")
    assert stack.get(f"{path}/audio").status_code == 410
    (archive / "elsewhere").rename(stored)
    assert stack.delete(path).json()["deleted"] is True
    assert not stored.exists()


def files_worker_serves(stack: Stack) -> bool:
    answer = stack.post("/synthesize/long?wait=true", {"text": "Hello."})
    return answer.status_code == 200


def test_a_files_worker_that_cannot_keep_jobs_says_so_and_ends(stack: Stack) -> None:
    (stack.folder / "file").write_text("in the way")
    stack.env["SUPERTONIC_JOBS_URL"] = f"file://{stack.folder}/file/jobs"
    stack.start_redis()
    stack.start_files()
    assert stack.processes.pop("files").wait(60) != 0
    lines = [line for line in stack.log("files").splitlines() if "cannot start" in line]
    assert len(lines) == 1 and "file/jobs" in lines[0]


@pytest.mark.parametrize("is_deleted", [True, False], ids=["deleted", "cancelled"])
def test_no_sound_stays_behind_that_was_under_way_when_its_job_ended(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_deleted: bool
) -> None:
    files = JobFiles(tmp_path / "data", url)
    files.check_writable()
    finished(files)
    bring, assert_there = files.place.put, []

    def put(name: str, path: Path) -> str:
        stored = bring(name, path)
        assert_there.append(stored)
        if is_deleted:
            files.delete("job")
        return stored

    monkeypatch.setattr(files.place, "put", put)
    if is_deleted:
        with pytest.raises(FileNotFoundError):
            files.store("job")
    else:
        files.store("job")
        files.drop_copy("job")
        files.drop_sound("job")  # as _close does where it was cancelled meanwhile
        assert files.stored_url("job") == ""
    assert open_at(assert_there[0]) is None


@pytest.mark.parametrize("is_deleted", [True, False], ids=["deleted", "cancelled"])
def test_no_sound_stays_behind_of_which_a_killed_worker_told_nobody(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_deleted: bool
) -> None:
    files = JobFiles(tmp_path / "data", url)
    files.check_writable()
    finished(files)
    bring, stored = files.place.put, []

    def put(name: str, path: Path) -> str:
        stored.append(bring(name, path))
        raise KeyboardInterrupt

    monkeypatch.setattr(files.place, "put", put)
    with pytest.raises(KeyboardInterrupt):
        files.store("job")
    assert open_at(stored[0]) is not None and files.stored_url("job") == ""
    # Another process, which need not have the same setting.
    later = JobFiles(tmp_path / "data")
    if is_deleted:
        later.delete("job")
    else:
        later.drop_sound("job")
    assert open_at(stored[0]) is None


def test_a_store_that_does_not_answer_keeps_one_thread_and_no_other_job(
    url: str, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.advancing import JobAdvancer

    client.flushall()
    files = JobFiles(tmp_path / "data", url)
    files.check_writable()
    finished(files)
    advancer = JobAdvancer(client, files, Settings())
    is_asked, answers = threading.Event(), threading.Event()

    def put(name: str, path: Path) -> str:
        is_asked.set()
        assert answers.wait(20)
        raise PlaceAway("no answer")

    monkeypatch.setattr(files.place, "put", put)
    job, pieces = a_job("job", 2), some_pieces(2)
    advancer.store.create(job, pieces, 60)
    first = threading.Thread(target=advancer.advance, args=("job",))
    first.start()
    assert is_asked.wait(20)
    try:
        other = replace(job, job_id="other")
        assert advancer._store(other) is False
    finally:
        answers.set()
        first.join(20)
    kept = advancer.store.job("job")
    assert kept is not None and kept.error == "The sound cannot be stored yet: no answer"
    assert advancer._storing.acquire(blocking=False), "the next one may"
