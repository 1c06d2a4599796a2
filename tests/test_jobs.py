"""Long jobs: submitted, watched, fetched, cancelled, and carried through every kind of loss."""

import numpy as np

from tests.sse import joined, read_events, samples_of
from tests.stack import Stack, wait_for


def long_text(characters: int) -> str:
    sentences = (f"Sentence number {n} of this book says very little. " for n in range(10_000))
    text = ""
    while len(text) < characters:
        text += next(sentences)
    return text[:characters]


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


def test_a_job_of_20000_characters_is_done_and_fetched(server: Stack) -> None:
    job_id = submit(server, 20_000)
    job = done(server, job_id)
    assert (job["state"], job["progress"], job["eta_seconds"]) == ("done", 1.0, 0.0)
    samples = samples_of(server.get(f"/jobs/{job_id}/audio").content)
    assert abs(len(samples) / 44_100 - job["duration_seconds"]) < 0.01
    assert job["duration_seconds"] > 600
    assert not list((server.data_dir / "jobs" / job_id).glob("*.pcm")), "chunk files are gone"


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


def test_audio_of_an_unfinished_job_is_refused_with_its_progress(server: Stack) -> None:
    job_id = submit(server, 30_000)
    answer = server.get(f"/jobs/{job_id}/audio")
    assert answer.status_code == 409 and "progress" in answer.json()
    server.delete(f"/jobs/{job_id}")


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


def test_a_cancelled_job_stops_and_leaves_nothing_behind(server: Stack) -> None:
    job_id = submit(server, 50_000)
    wait_for(lambda: server.get(f"/jobs/{job_id}").json()["chunks_done"] > 0)
    assert server.delete(f"/jobs/{job_id}").json()["state"] == "cancelled"
    wait_for(lambda: not list((server.data_dir / "jobs" / job_id).glob("*.pcm")), 20)
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
    wait_for(lambda: len(list((stack.data_dir / "jobs" / job_id).glob("*.pcm"))) >= 10)
    for name in ("worker", "files", "web", "redis"):
        stack.kill(name)
    on_disk = len(list((stack.data_dir / "jobs" / job_id).glob("*.pcm")))
    stack.start_all()
    job = done(stack, job_id)
    assert job["state"] == "done"
    spoken_after = stack.get("/metrics").json()["total_chunks"]
    assert spoken_after <= job["chunks_total"] - on_disk + 32, "finished chunks were not repeated"
    assert len(samples_of(stack.get(f"/jobs/{job_id}/audio").content)) > 44_100 * 600


def test_a_files_worker_that_stops_in_the_middle_is_followed_by_another(stack: Stack) -> None:
    stack.start_all()
    job_id = submit(stack, 10_000, target_chunk_chars=100, max_chunk_chars=200)
    wait_for(lambda: stack.get(f"/jobs/{job_id}").json()["chunks_done"] > 5)
    stack.kill("files")
    stack.start_files()
    assert done(stack, job_id)["state"] == "done"
