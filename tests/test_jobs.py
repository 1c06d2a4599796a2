"""Long jobs: submitted, watched, fetched, cancelled, and carried through every kind of loss."""

import base64
import io
import json
import os
import signal
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import soundfile

from app.encoding import FILE_FORMATS, MEDIA_TYPES
from tasks.jobsound import read_index
from tests.memory import Peaks, resident_bytes
from tests.sse import SAMPLE_RATE, decoded, joined, read_events, samples_of
from tests.stack import Stack, full, wait_for


def long_text(characters: int) -> str:
    sentences = (f"Sentence number {n} of this book says very little. " for n in range(10_000))
    text = ""
    while len(text) < characters:
        text += next(sentences)
    return text[:characters]


def gated_text(characters: int) -> str:
    """Ten short chunks and more are before the gate, and most of so many characters behind it."""
    return f"{long_text(1200)}. Here is the gate. {long_text(characters)}"


# Of the slow service's jobs: chunks of a sentence or two.
SHORT = {"target_chunk_chars": 100, "max_chunk_chars": 200}


def submit(server: Stack, characters: int = 3000, **fields: object) -> str:
    response = server.post("/synthesize/long", {"text": long_text(characters), **fields})
    assert response.status_code == 202, response.text
    job = response.json()
    assert response.headers["Location"] == f"/jobs/{job['job_id']}"
    return str(job["job_id"])


def done(server: Stack, job_id: str, limit_s: float = 120) -> dict:
    def ended() -> dict | None:
        job = server.get(f"/jobs/{job_id}").json()
        return job if job["state"] in ("done", "failed", "cancelled") else None

    return wait_for(ended, limit_s, f"job {job_id} ends")


def appended(stack: Stack, job_id: str) -> int:
    """Chunks that are in the job's file."""
    return len(read_index(stack.data_dir / "jobs" / job_id))


def start_slow(stack: Stack) -> None:
    """The whole service on an engine that needs its time for every chunk."""
    stack.env |= {
        "NULL_BATCH_MS": "100",
        "NULL_BYTES": "30000",
        "SUPERTONIC_MAX_BATCH": "2",
    }
    stack.start_redis()
    stack.start_web()
    stack.start_worker(app="tests.gated_worker")
    stack.start_files()
    stack.wait_ready()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A slow service that several tests use, one after the other, and none kills."""
    # However long its worker is kept from renewing a lease, nobody takes its chunks.
    stack = Stack(tmp_path_factory.mktemp("slow"), SUPERTONIC_VISIBILITY_TIMEOUT_S="60")
    try:
        start_slow(stack)
        yield stack
    finally:
        stack.stop_all()


def test_a_job_of_20000_characters_is_done_and_fetched(server: Stack) -> None:
    job_id = submit(server, 20_000)
    job = done(server, job_id)
    assert (job["state"], job["progress"], job["eta_seconds"]) == ("done", 1.0, 0.0)
    samples = samples_of(server.get(f"/jobs/{job_id}/audio").content)
    assert abs(len(samples) / SAMPLE_RATE - job["duration_seconds"]) < 0.01
    assert job["duration_seconds"] > 600
    folder = server.data_dir / "jobs" / job_id
    wait_for(lambda: not list(folder.glob("*.pcm")), what="no chunk is kept twice")
    assert job["expires_at"] == job["created_at"] + 7 * 86400


def test_a_jobs_file_equals_the_same_request_spoken_at_once(server: Stack) -> None:
    options = {"seed": 3, "target_chunk_chars": 100, "max_chunk_chars": 300}
    job_id = submit(server, 1000, **options)
    assert done(server, job_id)["state"] == "done"
    body = {"text": long_text(1000), **options, "output_format": "wav"}
    waited = server.post("/synthesize/long?wait=true", body)
    fetched = server.get(f"/jobs/{job_id}/audio")
    difference = samples_of(waited.content).astype(int) - samples_of(fetched.content)
    assert np.abs(difference).max() <= 1


def test_audio_can_be_fetched_in_ranges(server: Stack) -> None:
    job_id = submit(server, 500)
    done(server, job_id)
    whole = server.get(f"/jobs/{job_id}/audio").content
    part = server.get(f"/jobs/{job_id}/audio", headers={"Range": "bytes=1000-1999"})
    assert part.status_code == 206
    assert part.content == whole[1000:2000]
    beyond = server.get(f"/jobs/{job_id}/audio", headers={"Range": "bytes=999999999-"})
    assert beyond.status_code == 416
    more = {"Range": f"bytes=-{len(whole) + 1}"}
    all_of_it = server.get(f"/jobs/{job_id}/audio", headers=more)
    assert (all_of_it.status_code, all_of_it.content) == (206, whole)
    for not_offered in ("items=0-1", "bytes=0-1,5-6"):
        answer = server.get(f"/jobs/{job_id}/audio", headers={"Range": not_offered})
        assert (answer.status_code, answer.content) == (200, whole)
    another = server.get(f"/jobs/{job_id}/audio", headers={"If-Match": '"another"'})
    assert another.status_code == 412 and job_id in another.json()["detail"]
    anyone = server.get(f"/jobs/{job_id}/audio", headers={"If-Match": "*"})
    assert (anyone.status_code, anyone.content) == (200, whole)


@pytest.mark.parametrize("kind", FILE_FORMATS)
def test_audio_comes_in_other_formats(server: Stack, kind: str) -> None:
    job_id = submit(server, 1000, seed=5)
    done(server, job_id)
    spoken = samples_of(server.get(f"/jobs/{job_id}/audio").content)
    answer = server.get(f"/jobs/{job_id}/audio?format={kind}")
    assert answer.headers["Content-Type"] == MEDIA_TYPES[kind]
    heard, rate = decoded(answer.content)
    assert rate == (48_000 if kind == "opus" else SAMPLE_RATE)
    assert len(heard) / rate == pytest.approx(len(spoken) / SAMPLE_RATE, abs=0.15)
    if kind in ("wav", "flac"):
        assert np.array_equal(heard, spoken)
    else:
        assert len(answer.content) < len(spoken) and np.abs(heard.astype(int)).max() > 1000


def test_a_format_nobody_has_is_refused_with_those_there_are(server: Stack) -> None:
    job_id = submit(server, 100)
    done(server, job_id)
    answer = server.get(f"/jobs/{job_id}/audio?format=ogg")
    assert answer.status_code == 422 and "wav, mp3, opus, aac, flac" in answer.json()["detail"]


def test_audio_of_an_unfinished_job_is_refused_with_its_progress(slow: Stack) -> None:
    with slow.shut_gate():
        job_id = submit(slow, text=gated_text(1000))
        answer = slow.get(f"/jobs/{job_id}/audio")
        assert answer.status_code == 409 and "progress" in answer.json()
        assert "partial=true gives what there is" in answer.json()["detail"]
        slow.delete(f"/jobs/{job_id}")


def test_events_of_a_finished_job_can_be_replayed_from_anywhere(server: Stack) -> None:
    job_id = submit(server, 2000, seed=8, target_chunk_chars=200)
    done(server, job_id)
    whole = samples_of(server.get(f"/jobs/{job_id}/audio").content)
    with server.get(f"/jobs/{job_id}/events", stream=True) as response:
        events = list(read_events(response))
    assert np.array_equal(joined(events), whole)
    half = len(events) // 2
    headers = {"Last-Event-ID": events[half].id}
    with server.get(f"/jobs/{job_id}/events", headers=headers, stream=True) as response:
        rest = list(read_events(response))
    assert np.array_equal(joined(events[: half + 1] + rest), whole)
    ends = [one[-1].data for one in (events, rest)]
    assert ends[0] == ends[1], "it tells of the job, wherever one begins to listen"
    assert ends[0]["duration_seconds"] == pytest.approx(len(whole) / SAMPLE_RATE, abs=1e-3)


def test_who_waits_for_a_file_is_told_of_its_job_like_anybody_else(server: Stack) -> None:
    body = {"text": "A word in Norwegian: bl\u00e5b\u00e6r.", "seed": 5, "output_format": "wav"}
    waited = server.post("/synthesize/long?wait=true", body)
    spoken = server.post("/synthesize", body)
    for name in ("X-Seed", "X-Sample-Rate", "X-Warnings"):
        assert waited.headers[name] == spoken.headers[name] != ""
    assert waited.headers["Location"] == f"/jobs/{waited.headers['X-Job-Id']}"


def test_a_restart_changes_nothing_about_jobs_that_had_ended(stack: Stack) -> None:
    """Redis without persistence: what it knew comes from disk, and is not counted again."""
    start_slow(stack)
    finished = submit(stack, 300)
    done(stack, finished)
    cancelled = submit(stack, 48_000, **SHORT)
    wait_for(lambda: appended(stack, cancelled) >= 4)
    stack.delete(f"/jobs/{cancelled}")
    running = submit(stack, 48_000, **SHORT)
    wait_for(lambda: appended(stack, running) >= 2)

    def told() -> list[dict]:
        return [stack.get(f"/jobs/{job_id}").json() for job_id in (finished, cancelled)]

    def on_disk() -> dict[str, dict]:
        paths = (stack.data_dir / "jobs").glob("*/job.json")
        return {path.parent.name: json.loads(path.read_text()) for path in paths}

    wait_for(lambda: on_disk()[cancelled]["state"] == "cancelled")
    wait_for(lambda: on_disk()[running]["started_at"])
    before, started_at = told(), stack.get(f"/jobs/{running}").json()["started_at"]
    assert before[1]["chunks_done"] >= 4 and None not in (before[1]["started_at"], started_at)
    for name in ("worker", "files", "web", "redis"):
        stack.kill(name)
    start_slow(stack)
    for job_id in (finished, cancelled, running):
        wait_for(lambda job_id=job_id: stack.redis.exists(f"supertonic:job:{job_id}"), 30)
    assert told() == before
    assert stack.get(f"/jobs/{running}").json()["started_at"] == started_at
    figures = stack.get("/metrics").json()
    assert figures["total_requests"] == 1, "the running one"
    assert figures["requests_done"] == figures["requests_cancelled"] == 0
    stack.delete(f"/jobs/{running}")


def test_a_cancelled_job_stops_and_leaves_nothing_behind(server: Stack) -> None:
    job_id = submit(server, 50_000)
    wait_for(lambda: server.get(f"/jobs/{job_id}").json()["chunks_done"] > 0)
    assert server.delete(f"/jobs/{job_id}").json()["state"] == "cancelled"
    wait_for(lambda: not list((server.data_dir / "jobs" / job_id).glob("*.[piw]*")), 20)
    job = server.get(f"/jobs/{job_id}").json()
    assert job["state"] == "cancelled" and job["chunks_done"] < job["chunks_total"]
    assert server.delete(f"/jobs/{job_id}").json()["deleted"] is True
    assert server.get(f"/jobs/{job_id}").status_code == 404


def test_jobs_are_listed_the_newest_first_and_by_state(server: Stack) -> None:
    first, second = submit(server, 300), submit(server, 300)
    done(server, first), done(server, second)
    listed = [job["job_id"] for job in server.get("/jobs?state=done").json()["jobs"]]
    assert listed.index(second) < listed.index(first)
    assert len(server.get("/jobs?limit=1").json()["jobs"]) == 1


def test_a_job_survives_the_loss_of_everything_but_the_disk(stack: Stack) -> None:
    """Redis without persistence, every process killed: the job goes on at the first gap."""
    stack.start_all()
    job_id = submit(stack, 20_000, seed=21, target_chunk_chars=100, max_chunk_chars=200)
    wait_for(lambda: appended(stack, job_id) >= 10)
    for name in ("worker", "files", "web", "redis"):
        stack.kill(name)
    on_disk = appended(stack, job_id)
    stack.start_all()
    job = done(stack, job_id)
    assert job["state"] == "done"
    spoken_after = stack.get("/metrics").json()["total_chunks"]
    assert spoken_after <= job["chunks_total"] - on_disk + 32, "finished chunks were not repeated"
    assert len(samples_of(stack.get(f"/jobs/{job_id}/audio").content)) > SAMPLE_RATE * 600


def test_a_files_worker_that_stops_in_the_middle_is_followed_by_another(stack: Stack) -> None:
    stack.start_all()
    job_id = submit(stack, 10_000, target_chunk_chars=100, max_chunk_chars=200)
    wait_for(lambda: stack.get(f"/jobs/{job_id}").json()["chunks_done"] > 5)
    stack.kill("files")
    stack.start_files()
    assert done(stack, job_id)["state"] == "done"


def test_an_hour_of_sound_passes_through_with_flat_memory(stack: Stack) -> None:
    """300 MB: less than a tenth of it is ever in the memory of any process, Redis included."""
    # Chunks in Redis at a time, should the files worker take a break: 2 MB each.
    stack.env |= {"NULL_BYTES": "1800000", "SUPERTONIC_JOB_WINDOW": "16"}
    stack.start_redis()
    stack.start_web()
    stack.start_worker(app="benchmarks.null_worker")
    stack.start_files()
    stack.wait_ready()
    body = {"text": long_text(50_000), "output_format": "base64"}
    # Whatever is loaded on first use is loaded before the first sample.
    for warm_up in ("/synthesize/long?wait=true", "/synthesize/long", "/synthesize"):
        stack.post(warm_up, body | {"text": "Hello there."})
    probes = {
        name: partial(resident_bytes, process.pid) for name, process in stack.processes.items()
    }
    probes["redis data"] = lambda: stack.redis.info("memory")["used_memory"]
    with Peaks(probes) as peaks:
        options = {"json": body, "stream": True, "timeout": 120}
        answer = stack.session.post(f"{stack.url}/synthesize/long?wait=true", **options)
        received, sound = 0, b""
        for block in answer.iter_content(1 << 20):
            received += len(block)
            sound += block[:100] if not sound else b""
        (job,) = (j for j in stack.get("/jobs").json()["jobs"] if j["characters"] == 50_000)
        with stack.get(f"/jobs/{job['job_id']}/audio", stream=True) as file:
            n_bytes = sum(len(block) for block in file.iter_content(1 << 20))
        with stack.get(f"/jobs/{job['job_id']}/audio?format=flac", stream=True) as file:
            assert sum(len(block) for block in file.iter_content(1 << 20)) > 8e6
    assert job["state"] == "done" and n_bytes > 280e6
    assert sound.startswith(b'{"audio_base64": "UklGR') and received > 4 / 3 * n_bytes
    assert base64.b64decode(sound[18:78])[:4] == b"RIFF"
    on_disk = sum(path.stat().st_size for path in stack.data_dir.rglob("*") if path.is_file())
    assert on_disk < n_bytes + 5e6, "the sound is on disk once"
    assert max(peaks.growth.values()) < 60e6, {n: b / 1e6 for n, b in peaks.growth.items()}
    # Not a job: here Redis holds what the web has not taken yet.
    with Peaks({"web": probes["web"]}) as peaks:
        for kind, at_least in (("wav", n_bytes), ("base64", 4 / 3 * n_bytes)):
            options["json"] = body | {"output_format": kind}
            whole = stack.session.post(f"{stack.url}/synthesize", **options)
            assert sum(len(block) for block in whole.iter_content(1 << 20)) >= at_least
    assert peaks.growth["web"] < 60e6


def test_sound_so_far_can_be_fetched_while_the_rest_is_made(slow: Stack) -> None:
    with slow.shut_gate():
        job_id = submit(slow, text=gated_text(2000), **SHORT)
        nothing = slow.get(f"/jobs/{job_id}/audio?partial=true")
        wait_for(lambda: appended(slow, job_id) >= 4)
        early = slow.get(f"/jobs/{job_id}/audio?partial=true")
        as_flac = slow.get(f"/jobs/{job_id}/audio?partial=true&format=flac")
        assert early.status_code == 200 and early.headers["Cache-Control"] == "no-store"
        assert nothing.status_code in (200, 409)
        assert slow.get(f"/jobs/{job_id}/audio").status_code == 409
    assert done(slow, job_id)["state"] == "done"
    paced = 44_100  # of the slow service's engine
    first = samples_of(early.content, paced)
    whole = samples_of(slow.get(f"/jobs/{job_id}/audio").content, paced)
    assert 4 * 15_000 <= len(first) < len(whole)
    assert np.array_equal(first, whole[: len(first)])
    second, _ = soundfile.read(io.BytesIO(as_flac.content), dtype="int16")
    assert len(first) <= len(second) and np.array_equal(second, whole[: len(second)])
    after = slow.get(f"/jobs/{job_id}/audio?partial=true")
    assert np.array_equal(samples_of(after.content, paced), whole)


def test_a_paused_job_stands_still_and_goes_on_where_it_stopped(slow: Stack) -> None:
    with slow.shut_gate():
        job_id = submit(slow, text=gated_text(2000), **SHORT)
        wait_for(lambda: slow.get(f"/jobs/{job_id}").json()["chunks_done"] >= 4)
        paused = slow.post(f"/jobs/{job_id}/pause").json()
        assert (paused["state"], paused["eta_seconds"]) == ("paused", None)
        spoken = slow.get("/metrics").json()["total_chunks"]
    other = submit(slow, 300)
    assert done(slow, other)["state"] == "done", "others are spoken meanwhile"
    still = slow.get(f"/jobs/{job_id}").json()
    new = slow.get("/metrics").json()["total_chunks"] - spoken
    assert still["chunks_done"] - paused["chunks_done"] <= 2, "no more than the batch that ran"
    assert new <= 2 + slow.get(f"/jobs/{other}").json()["chunks_total"]
    assert slow.post(f"/jobs/{job_id}/pause").json()["state"] == "paused"
    listed = slow.get("/jobs?state=paused").json()["jobs"]
    assert [job["job_id"] for job in listed] == [job_id]
    resumed = slow.post(f"/jobs/{job_id}/resume").json()
    assert resumed["state"] == "running"
    assert slow.post(f"/jobs/{job_id}/resume").json()["state"] in ("running", "done")
    assert done(slow, job_id)["state"] == "done"
    for action in ("pause", "resume"):
        refused = slow.post(f"/jobs/{job_id}/{action}")
        assert refused.status_code == 409 and "done already" in refused.json()["detail"]


def test_pausing_and_resuming_at_once_queues_nothing_twice(slow: Stack) -> None:
    job_id = submit(slow, 48_000, **SHORT)
    wait_for(lambda: slow.get(f"/jobs/{job_id}").json()["chunks_done"] >= 2)
    for _ in range(20):
        slow.post(f"/jobs/{job_id}/pause")
        slow.post(f"/jobs/{job_id}/resume")
    waiting = slow.redis.llen("low") + slow.redis.hlen("unacked")
    assert waiting <= 2 * 32, "its window, and some that a worker skipped and that were sent again"
    slow.delete(f"/jobs/{job_id}")


def test_pausing_again_and_again_is_no_attempt_at_a_chunk(slow: Stack) -> None:
    """A chunk skipped for a pause must not count among the four that a chunk may take down."""
    job_id = submit(slow, 4000, **SHORT)
    for n in range(1, 6):
        wait_for(lambda n=n: slow.get(f"/jobs/{job_id}").json()["chunks_done"] >= 2 * n)
        slow.post(f"/jobs/{job_id}/pause")
        wait_for(lambda: slow.redis.llen("low") == 0 and slow.redis.hlen("unacked") == 0)
        slow.post(f"/jobs/{job_id}/resume")
    assert done(slow, job_id)["state"] == "done"
    record = slow.redis.hgetall(f"supertonic:job:{job_id}")
    attempts = [int(value) for name, value in record.items() if name.startswith(b"attempt:")]
    assert attempts and set(attempts) == {1}


def test_a_pause_outlasts_every_process_and_ends_with_a_resume(stack: Stack) -> None:
    start_slow(stack)
    with stack.shut_gate():
        job_id = submit(stack, text=gated_text(2000), **SHORT)
        wait_for(lambda: appended(stack, job_id) >= 4)
        stack.post(f"/jobs/{job_id}/pause")
        for name in ("worker", "files", "web", "redis"):
            stack.kill(name)
    start_slow(stack)
    job = wait_for(lambda: (r := stack.get(f"/jobs/{job_id}")).status_code == 200 and r.json(), 20)
    wait_for(lambda: stack.redis.exists(f"supertonic:job:{job_id}"), 20, "restored")
    assert stack.get(f"/jobs/{job_id}").json()["state"] == job["state"] == "paused"
    assert stack.get("/metrics").json()["total_chunks"] == 0
    stack.post(f"/jobs/{job_id}/resume")
    assert done(stack, job_id)["state"] == "done"


def test_events_tell_of_pauses_and_keep_their_positions(slow: Stack) -> None:
    events, path = [], "/jobs/{}/events?audio=false"
    with slow.shut_gate():
        job_id = submit(slow, text=gated_text(1000), **SHORT)
        wait_for(lambda: slow.get(f"/jobs/{job_id}").json()["chunks_done"] >= 2)
        with slow.get(path.format(job_id), stream=True) as response:
            for event in read_events(response):
                events.append(event)
                if event.event == "chunk" and event.data["index"] == 3:
                    slow.post(f"/jobs/{job_id}/pause")
                if event.event == "paused":
                    slow.post(f"/jobs/{job_id}/resume")
                    slow.open_gate()
    names = [event.event for event in events]
    assert names.count("paused") == names.count("resumed") == 1
    assert names.index("paused") < names.index("resumed") and names[-1] == "done"
    assert all(event.id == "" for event in events if event.event in ("paused", "resumed"))
    ids = [int(event.id) for event in events if event.id]
    assert ids == list(range(len(ids))), "ids count on as if nothing had been"
    with slow.get(path.format(job_id), stream=True) as response:
        again = [event.event for event in read_events(response)]
    assert "paused" not in again and again[-1] == "done"


def test_a_full_redis_refuses_what_is_new_and_lets_jobs_be_cancelled(slow: Stack) -> None:
    running, paused = submit(slow, 48_000, **SHORT), submit(slow, 48_000, **SHORT)
    wait_for(lambda: slow.get(f"/jobs/{running}").json()["chunks_done"] >= 2)
    slow.post(f"/jobs/{paused}/pause")
    with full(slow.redis):
        for path in ("/synthesize", "/synthesize/long", f"/jobs/{running}/pause"):
            refused = slow.post(path, {"text": "Hello."})
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "10"), path
            assert refused.headers["Content-Type"] == "application/problem+json"
        for job_id in (running, paused):
            cancelled = slow.delete(f"/jobs/{job_id}")
            assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
            assert slow.get(f"/jobs/{job_id}").json()["state"] == "cancelled"
    assert done(slow, submit(slow, 300))["state"] == "done"


def test_a_paused_job_can_be_cancelled_and_deleted(slow: Stack) -> None:
    job_id = submit(slow, 48_000)
    slow.post(f"/jobs/{job_id}/pause")
    assert slow.delete(f"/jobs/{job_id}").json()["state"] == "cancelled"
    assert slow.delete(f"/jobs/{job_id}").json()["deleted"] is True
    assert slow.get(f"/jobs/{job_id}").status_code == 404


def test_progress_tells_an_honest_time_left_and_a_place(slow: Stack) -> None:
    with slow.shut_gate():
        first = submit(slow, text=gated_text(12_000), **SHORT)
        worker = slow.processes["worker"].pid
        os.killpg(worker, signal.SIGSTOP)
        try:
            second, third = submit(slow, 300), submit(slow, 300)
            waiting = {job["job_id"]: job for job in slow.get("/jobs?state=queued").json()["jobs"]}
        finally:
            os.killpg(worker, signal.SIGCONT)
        assert waiting[second]["eta_seconds"] is None
        assert waiting[third]["queue_position"] == waiting[second]["queue_position"] + 1
        left = wait_for(lambda: slow.get(f"/jobs/{first}").json()["eta_seconds"])
        job = slow.get(f"/jobs/{first}").json()
        assert job["queue_position"] is None
        # Two chunks per 100 ms at best; a busy machine is slower, and the others have their turn.
        assert left > 0.5 * (job["chunks_total"] - job["chunks_done"]) / 20
        slow.post(f"/jobs/{first}/pause")
        assert slow.get(f"/jobs/{first}").json()["eta_seconds"] is None
        slow.post(f"/jobs/{first}/resume")
        again = slow.get(f"/jobs/{first}").json()
        assert again["eta_seconds"] is None, "the pace is measured afresh"
        slow.delete(f"/jobs/{first}")


def test_the_list_is_read_page_by_page(server: Stack) -> None:
    ids = [submit(server, 60) for _ in range(5)]
    seen, cursor = [], ""
    while cursor is not None:
        page = server.get(f"/jobs?limit=2&cursor={cursor}").json()
        assert len(page["jobs"]) <= 2
        seen += [job["job_id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
    assert seen[:5] == ids[::-1] and len(seen) == len(set(seen))
    refused = server.get("/jobs?cursor=nonsense")
    assert refused.status_code == 422 and "next_cursor" in refused.json()["detail"]


def test_a_cancel_outlasts_the_loss_of_redis(stack: Stack) -> None:
    """Nobody wrote the end down before Redis was lost, and the worker still knows of it."""
    start_slow(stack)
    job_id = submit(stack, 48_000, **SHORT)
    wait_for(lambda: stack.get(f"/jobs/{job_id}").json()["chunks_done"] > 0)
    stack.kill("files")
    cancelled = stack.session.delete(f"{stack.url}/jobs/{job_id}")
    assert cancelled.json()["state"] == "cancelled"
    stack.kill("redis")
    stack.start_redis()
    stack.start_files()
    wait_for(lambda: stack.get(f"/jobs/{job_id}").json()["state"] == "cancelled", 30)
    folder = stack.data_dir / "jobs" / job_id

    def on_disk() -> dict:
        return json.loads((folder / "job.json").read_text())

    wait_for(lambda: on_disk()["state"] == "cancelled", 20)
    assert on_disk()["finished_at"] is not None and not (folder / "audio.wav").exists()
