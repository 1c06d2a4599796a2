"""The service as its users meet it: real Redis, real workers, real gunicorn, the built-in voice."""

import base64
import json
import re
import threading

import numpy as np
import pytest
import requests
import websocket

from supertonic.cores import usable_cores
from tests.sse import BUILTIN_CONFIG, SAMPLE_RATE, Received, joined, read_events, samples_of
from tests.stack import Stack, wait_for

TEXT = (
    "Good morning, everybody. This is a text of several sentences, long enough to be cut into "
    "pieces. The first piece is short, so that you hear something soon; the others may be "
    "longer, because by then there is sound to listen to. After that comes the end. Or does it? "
    "One more sentence follows, and then another one, only to be sure that there are three pieces. "
    "And so that the last of them is worth listening to, it ends with a few more words than needed."
)


def stream(server: Stack, body: dict) -> list[Received]:
    with server.stream(body) as response:
        assert response.status_code == 200, response.text
        return list(read_events(response))


def test_synthesize_answers_like_the_original_server(server: Stack) -> None:
    answer = server.post("/synthesize", {"text": "Hello, world!", "voice": "F1"}).json()
    samples = samples_of(base64.b64decode(answer["audio_base64"]))
    assert answer["sample_rate"] == SAMPLE_RATE
    assert answer["duration_seconds"] == pytest.approx(len(samples) / SAMPLE_RATE, abs=1e-3)
    assert answer["batch_size"] >= 1 and answer["inference_time_ms"] > 0
    assert 0.3 < answer["duration_seconds"] < 5
    assert np.abs(samples).max() > 500, "there is sound"


def test_wav_output_is_the_file_itself(server: Stack) -> None:
    response = server.post("/synthesize", {"text": "Hello.", "output_format": "wav", "seed": 5})
    assert response.headers["Content-Type"] == "audio/wav"
    assert response.headers["X-Seed"] == "5"
    assert len(samples_of(response.content)) > 10_000


def test_a_stream_joins_to_the_samples_of_the_file(server: Stack) -> None:
    body = {"text": TEXT, "voice": "M3", "seed": 123}
    whole = server.post("/synthesize", body | {"output_format": "wav"})
    events = stream(server, body)
    difference = joined(events).astype(int) - samples_of(whole.content)
    assert np.abs(difference).max() <= 1


def test_a_stream_numbers_its_events_and_ends_once(server: Stack) -> None:
    events = stream(server, {"text": TEXT})
    total = events[0].data["total"]
    assert total >= 3
    kinds = [event.event for event in events]
    assert kinds == ["accepted", *["chunk"] * total, "done"]
    assert [event.id for event in events] == [str(number) for number in range(total + 2)]
    assert [event.data["index"] for event in events[1:-1]] == list(range(total))
    assert " ".join(event.data["text"] for event in events[1:-1]) == TEXT


def test_the_same_seed_gives_the_same_samples_and_another_gives_others(server: Stack) -> None:
    def speak(seed: int | None) -> bytes:
        body = {"text": "The same again?", "output_format": "wav", "seed": seed}
        return server.post("/synthesize", body).content

    assert speak(1) == speak(1)
    assert speak(1) != speak(2)


def test_a_random_seed_is_reported_and_repeats_the_sound(server: Stack) -> None:
    first = server.post("/synthesize", {"text": "A surprise."}).json()
    again = server.post("/synthesize", {"text": "A surprise.", "seed": first["seed"]}).json()
    assert first["audio_base64"] == again["audio_base64"]


def test_unknown_characters_are_reported_not_dropped_in_silence(server: Stack) -> None:
    answer = server.post("/synthesize", {"text": "Hello 你好, world."}).json()
    assert "你" in answer["warnings"][0] and "好" in answer["warnings"][0]


def test_pauses_are_part_of_every_chunk_but_the_last(server: Stack) -> None:
    body = {"text": TEXT, "seed": 9}
    without = stream(server, body | {"pause_s": 0})
    with_pause = stream(server, body | {"pause_s": 0.5})
    for short, long in zip(without[1:-1], with_pause[1:-1], strict=True):
        pause = long.data["n_samples"] - short.data["n_samples"]
        # All pieces of this text end with a sentence, which has the whole pause.
        is_last = short.data["index"] == short.data["total"] - 1
        assert pause == (0 if is_last else SAMPLE_RATE // 2)
        tail = samples_of(base64.b64decode(long.data["audio_base64"]))[-pause:] if pause else []
        assert not np.any(tail)


def test_silence_may_be_asked_for_behind_a_text(server: Stack) -> None:
    body = {"text": "One. Two.", "seed": 3, "output_format": "wav"}
    plain, longer = (
        samples_of(server.post("/synthesize", body | more).content)
        for more in ({}, {"end_pause_s": 0.5})
    )
    rate = server.get("/voices").json()["model"]["sample_rate"]
    assert len(longer) == len(plain) + round(0.5 * rate)
    assert not longer[len(plain) :].any()
    assert server.post("/synthesize", body | {"end_pause_s": 4}).status_code == 422


def test_paragraphs_may_have_a_silence_of_their_own(server: Stack) -> None:
    body = {"text": "One. Two.\n\nThree.\nFour.\n\nFive.", "seed": 3, "output_format": "wav"}
    plain, same, longer = (
        samples_of(server.post("/synthesize", body | more).content)
        for more in ({}, {"paragraph_pause_s": None}, {"paragraph_pause_s": 1.3})
    )
    rate = server.get("/voices").json()["model"]["sample_rate"]
    assert np.array_equal(plain, same)
    assert len(longer) - len(plain) == 2 * (round(1.3 * rate) - round(0.3 * rate))


def test_every_voice_and_language_speaks(server: Stack) -> None:
    listed = server.get("/voices").json()
    assert [voice["id"] for voice in listed["voices"]] == [
        *("M1", "M2", "M3", "M4", "M5"),
        *("F1", "F2", "F3", "F4", "F5"),
    ]
    texts = {"en": "Hello.", "ko": "안녕하세요.", "es": "Hola.", "pt": "Olá.", "fr": "Ça va ?"}
    spoken = [entry["code"] for entry in listed["languages"]]
    assert spoken == [code for code in texts if code in BUILTIN_CONFIG.languages]
    for number, voice in enumerate(listed["voices"]):
        language = spoken[number % len(spoken)]
        body = {"text": texts[language], "voice": voice["id"], "language": language}
        assert server.post("/synthesize", body).status_code == 200
    for language in set(texts) - set(spoken):
        refused = server.post("/synthesize", {"text": texts[language], "language": language})
        assert refused.status_code == 422 and "must be one of" in refused.text


def test_a_client_that_leaves_cancels_its_job(server: Stack) -> None:
    text = " ".join(f"This is sentence number {n} of a very long text." for n in range(400))
    with server.stream({"text": text}) as response:
        accepted = next(read_events(response))
    job = wait_for(lambda: _ended(server, accepted.data["job_id"]), 20)
    assert job["state"] == "cancelled"
    assert job["chunks_done"] < job["chunks_total"]


def _ended(server: Stack, job_id: str) -> dict | None:
    job = server.get(f"/jobs/{job_id}").json()
    return job if job["state"] in ("done", "failed", "cancelled") else None


def test_a_resumable_stream_goes_on_where_the_client_left(server: Stack) -> None:
    body = {"text": TEXT, "seed": 11, "resumable": True}
    with server.stream(body) as response:
        events = read_events(response)
        seen = [next(events), next(events)]
    job_id = seen[0].data["job_id"]
    headers = {"Last-Event-ID": seen[-1].id}
    with server.get(f"/jobs/{job_id}/events", headers=headers, stream=True) as response:
        rest = list(read_events(response))
    assert [event.event for event in rest] == ["chunk"] * (len(rest) - 1) + ["done"]
    assert rest[0].data["index"] == 1
    whole = server.post("/synthesize", {"text": TEXT, "seed": 11, "output_format": "wav"})
    difference = joined(seen + rest).astype(int) - samples_of(whole.content)
    assert np.abs(difference).max() <= 1


def test_a_websocket_takes_texts_and_gives_binary_frames(server: Stack) -> None:
    ws = websocket.create_connection(server.url.replace("http", "ws") + "/ws/synthesize")
    ws.send(json.dumps({"type": "speak", "text": TEXT, "seed": 4}))
    pcm, message = b"", json.loads(ws.recv())
    assert message["type"] == "accepted"
    while (message := json.loads(ws.recv()))["type"] == "chunk":
        frame = ws.recv()
        assert len(frame) == 2 * message["n_samples"]
        pcm += frame
    assert message["type"] == "done" and message["samples_sent"] == len(pcm) // 2
    ws.close()
    whole = server.post("/synthesize", {"text": TEXT, "seed": 4, "output_format": "wav"})
    difference = np.frombuffer(pcm, "<i2").astype(int) - samples_of(whole.content)
    assert np.abs(difference).max() <= 1


def test_a_websocket_cancels_and_speaks_again(server: Stack) -> None:
    ws = websocket.create_connection(server.url.replace("http", "ws") + "/ws/synthesize")
    long_text = " ".join(f"Sentence number {n} goes on and on." for n in range(500))
    ws.send(json.dumps({"type": "speak", "text": long_text}))
    assert json.loads(ws.recv())["type"] == "accepted"
    ws.send(json.dumps({"type": "cancel"}))
    sent = 0
    while not isinstance(frame := ws.recv(), str) or json.loads(frame)["type"] == "chunk":
        sent += len(frame) // 2 if isinstance(frame, bytes) else 0
    cancelled = json.loads(frame)
    assert cancelled["type"] == "cancelled" and cancelled["samples_sent"] == sent
    ws.send(json.dumps({"type": "speak", "text": "Still here."}))
    assert json.loads(ws.recv())["type"] == "accepted"
    ws.close()


def test_a_hundred_streams_complete_and_first_chunks_come_before_second_ones(
    server: Stack,
) -> None:
    """The burst is sent while the worker is held, so that who goes first is its choice alone."""
    streams: list[list[Received]] = []

    def listen() -> None:
        # Without a seed: then begun chunks are noted with the job, as others could not share them.
        streams.append(stream(server, {"text": TEXT}))

    with server.held():
        threads = [threading.Thread(target=listen) for _ in range(100)]
        for thread in threads:
            thread.start()
        wait_for(lambda: server.redis.llen("high") >= 98, 60, "the burst has been sent")
    for thread in threads:
        thread.join(120)
    assert len(streams) == 100
    assert all(events[-1].event == "done" for events in streams)
    first, later = [], []
    for events in streams:
        record = server.redis.hgetall(f"supertonic:job:{events[0].data['job_id']}")
        first.append(float(record[b"begun:0"]))
        later += [float(at) for name, at in record.items() if re.match(b"begun:[1-9]", name)]
    assert len(later) == 100 * (streams[0][0].data["total"] - 1)
    # What is taken by several cores at the same moment may be begun in any order.
    behind = {at for at in first if at > min(later)}
    assert len(behind) < usable_cores(), "batches of first chunks behind a later chunk"


def test_batch_limits_reach_the_running_worker(server: Stack) -> None:
    before = server.get("/").json()["batch"]
    answer = server.post("/config/batch?max_batch_size=3&max_wait_time_ms=7").json()
    assert answer["batch"] == {"max_batch_size": 3, "max_wait_time_ms": 7}
    assert answer["workers"] == [
        {"name": "worker@test", "max_batch_size": 3, "max_wait_time_ms": 7}
    ]
    assert server.post("/config/batch", before).json()["batch"] == before


def test_health_says_which_model_speaks(server: Stack) -> None:
    health = server.get("/").json()
    assert health["status"] == "ok"
    assert health["model"]["is_builtin"] is True
    assert "built-in" in health["model"]["description"].lower()
    assert health["workers"][0]["name"] == "worker@test"


def test_a_browser_is_sent_to_the_page(server: Stack) -> None:
    answer = server.get("/", headers={"Accept": "text/html"}, allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (302, "/ui")


def test_metrics_speak_json_to_people_and_text_to_prometheus(server: Stack) -> None:
    server.post("/synthesize", {"text": "Count me."})
    # Tests before this one may have left something behind.
    wait_for(lambda: server.get("/metrics").json()["queue_sizes"]["high"] == 0)
    figures = server.get("/metrics").json()
    assert figures["total_chunks"] >= 1
    text = requests.get(server.url + "/metrics", headers={"Accept": "text/plain"}).text
    line = next(line for line in text.splitlines() if line.startswith("supertonic_chunks_total"))
    assert float(line.split()[1]) >= figures["total_chunks"]
