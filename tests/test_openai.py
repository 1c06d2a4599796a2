"""OpenAI's own client, and what it and others rely on beyond it."""

import base64
import io
import json
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import openai
import pytest
import requests
import soundfile

from app.encoding import MEDIA_TYPES
from app.openai_api import VOICE_NAMES
from app.schemas import V1Body
from supertonic.voices import VOICES
from tests.sse import SAMPLE_RATE, decoded, samples_of
from tests.stack import Stack, wait_for

TEXT = "Good evening. This is a second sentence, so that there are several chunks. " * 4


@pytest.fixture
def client(server: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service whose worker waits where a test wants it."""
    stack = Stack(tmp_path_factory.mktemp("gated"))
    try:
        stack.start_gated()
        yield stack
    finally:
        stack.stop_all()


@contextmanager
def begun(stack: Stack, **options: Any) -> Iterator[tuple[Any, Iterator[bytes], str]]:
    """A speech of which some has come, and the rest waits at a gate: answer, blocks, job's id."""
    defaults = {"model": "tts-1", "voice": "alloy", "input": f"{TEXT} Here is the gate."}
    where = {"base_url": f"{stack.url}/v1", "api_key": "none", "max_retries": 0}
    with openai.OpenAI(timeout=60, **where) as client, stack.shut_gate():
        speech = client.audio.speech.with_streaming_response
        with speech.create(**defaults | options) as answer:
            blocks, heard = answer.iter_bytes(), 0
            while heard < 2000:
                heard += len(next(blocks))
            yield answer, blocks, answer.headers["X-Job-Id"]


def native(server: Stack, **body: Any) -> np.ndarray:
    answer = server.post("/synthesize", {"output_format": "wav", "speed": 1.0} | body)
    return samples_of(answer.content)


def create(client: openai.OpenAI, **options: Any) -> Any:
    defaults: dict[str, Any] = {"model": "tts-1", "voice": "F3", "input": TEXT}
    return client.audio.speech.create(**defaults | options)


@pytest.mark.parametrize("kind", MEDIA_TYPES)
def test_every_format_holds_the_whole_sound(
    client: openai.OpenAI, server: Stack, kind: str
) -> None:
    answer = create(client, response_format=kind, extra_body={"seed": 7})
    assert answer.response.headers["Content-Type"] == MEDIA_TYPES[kind]
    rate = int(answer.response.headers["X-Sample-Rate"])
    if kind == "pcm":
        assert rate == 24_000
        heard, found = np.frombuffer(answer.content, "<i2"), rate
    else:
        heard, found = decoded(answer.content)
    assert found == rate == {"pcm": 24_000, "opus": 48_000}.get(kind, SAMPLE_RATE)
    spoken = native(server, text=TEXT, voice="F3", seed=7)
    if kind == "mp3":
        # A frame of silence in front, and what the encoder looks ahead.
        frame = 1152 if rate >= 32_000 else 576
        late = frame + 576 + 529
        assert 0 <= len(heard) - late - len(spoken) < 2 * frame
        heard = heard[late : late + len(spoken)]
    if kind == "aac":
        # One frame in front, and the last one filled up.
        assert 0 <= len(heard) - 1024 - len(spoken) < 1024
        heard = heard[1024 : 1024 + len(spoken)]
    assert len(heard) / rate == pytest.approx(len(spoken) / SAMPLE_RATE, abs=0.001)
    if kind in ("wav", "flac"):
        assert np.array_equal(heard, spoken)
    else:
        # As loud, second by second; a click or a missing piece would stand out.
        loud = [
            np.abs(each[: len(each) // 50 * 50].reshape(50, -1).astype(float)).mean(axis=1)
            for each in (heard, spoken)
        ]
        assert np.corrcoef(*loud)[0, 1] > 0.98


@pytest.mark.parametrize("kind", ["pcm", "wav", "mp3", "opus", "aac"])
def test_the_sound_comes_while_the_rest_is_made(gated: Stack, kind: str) -> None:
    with begun(gated, response_format=kind) as (answer, blocks, job_id):
        assert answer.headers["X-Request-Id"] == job_id
        assert gated.get(f"/jobs/{job_id}").json()["state"] == "running"
        gated.open_gate()
        for _ in blocks:
            pass
        assert gated.get(f"/jobs/{job_id}").json()["state"] == "done"


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 16_000])
def test_a_short_wav_tells_its_length(server: Stack, rate: int) -> None:
    body = {"input": "Hello.", "voice": "F3", "response_format": "wav", "seed": 7}
    body |= {"sample_rate": rate}
    answer = server.post("/v1/audio/speech", body)
    assert int(answer.headers["Content-Length"]) == len(answer.content) > 10_000
    with wave.open(io.BytesIO(answer.content)) as wav:
        assert wav.getframerate() == rate
        assert 44 + 2 * wav.getnframes() == len(answer.content)
    if rate == SAMPLE_RATE:
        spoken = native(server, text="Hello.", voice="F3", seed=7)
        assert np.array_equal(samples_of(answer.content), spoken)
    longer = server.post("/v1/audio/speech", body | {"input": TEXT})
    assert "Content-Length" not in longer.headers
    assert longer.content[40:44] == b"\xff" * 4
    events = server.post("/v1/audio/speech", body | {"stream_format": "sse"})
    assert "Content-Length" not in events.headers and b"speech.audio.done" in events.content


def test_closing_the_connection_cancels_the_speech(gated: Stack) -> None:
    with begun(gated, response_format="pcm") as (answer, _, job_id):
        answer.close()
        wait_for(lambda: gated.get(f"/jobs/{job_id}").json()["state"] == "cancelled", 20)


def test_events_carry_the_same_bytes_and_end_with_usage(
    client: openai.OpenAI, server: Stack
) -> None:
    options = {"response_format": "pcm", "extra_body": {"seed": 7}}
    whole = create(client, **options).content
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="F3", input=TEXT, stream_format="sse", **options
    ) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [event["type"] for event in events[-2:]] == ["speech.audio.delta", "speech.audio.done"]
    assert all(event["audio"] for event in events[:-1])
    assert max(map(len, lines)) < 65_536, "what readers of lines take"
    assert b"".join(base64.b64decode(event["audio"]) for event in events[:-1]) == whole
    usage = events[-1]["usage"]
    assert usage["input_tokens"] == len(TEXT)
    assert usage["output_tokens"] == pytest.approx(len(whole) / 2 / 24_000, abs=1)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_their_names_for_voices_and_models_mean_ours(client: openai.OpenAI, server: Stack) -> None:
    assert set(VOICE_NAMES.values()) == set(VOICES)
    options = {"input": "Hello.", "response_format": "wav", "extra_body": {"seed": 7}}
    nova = create(client, voice="nova", **options).content
    assert np.array_equal(
        samples_of_stream(nova), native(server, text="Hello.", voice="F3", seed=7)
    )
    hd = create(client, voice={"id": "F3"}, model="tts-1-hd", **options).content
    better = native(server, text="Hello.", voice="F3", seed=7, steps=5)
    assert np.array_equal(samples_of_stream(hd), better)
    listed = requests.get(f"{server.url}/v1/audio/voices", timeout=10).json()["voices"]
    assert {"id": "F1", "name": "F1"} in listed and {"id": "nova", "name": "nova"} in listed


def samples_of_stream(wav: bytes) -> np.ndarray:
    return np.asarray(soundfile.read(io.BytesIO(wav), dtype="int16")[0])


def test_models_are_listed_as_clients_expect(client: openai.OpenAI, server: Stack) -> None:
    names = [model.id for model in client.models.list()]
    assert names[:3] == ["tts-1", "tts-1-hd", "gpt-4o-mini-tts"] and len(names) == 4
    assert client.models.retrieve(names[-1]).owned_by == "supertonic-server"
    with pytest.raises(openai.NotFoundError, match="There is no model gpt-9"):
        client.models.retrieve("gpt-9")
    spoken = requests.get(f"{server.url}/v1/audio/models", timeout=10).json()["models"]
    assert [model["id"] for model in spoken] == names


@pytest.mark.parametrize(
    ("options", "param", "says"),
    [
        ({"voice": "pavarotti"}, "voice", "must be one of"),
        ({"input": "?!"}, "input", "nothing to say"),
        ({"input": "a" * 60_000}, "input", "at most 50000"),
        ({"response_format": "ogg"}, "response_format", "mp3, opus, aac, flac, wav or pcm"),
        ({"speed": 9}, "speed", "from 0.25 to 4.0"),
        ({"stream_format": "smoke"}, "stream_format", '"audio" or "sse"'),
        ({"extra_body": {"language": "de"}}, "language", "must be one of"),
        ({"extra_body": {"input": None}}, "input", "a string"),
    ],
)
def test_mistakes_come_in_their_envelope(
    client: openai.OpenAI, options: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, **options)
    assert says in refused.value.message and refused.value.param == param
    assert refused.value.type == "invalid_request_error"


def test_what_is_unknown_is_ignored_and_odd_speeds_are_taken(client: openai.OpenAI) -> None:
    options = {"input": "Hello.", "response_format": "pcm", "instructions": "whisper"}
    slow = create(client, speed=0.25, extra_body={"seed": 1, "colour": "red"}, **options)
    half = create(client, speed=0.5, extra_body={"seed": 1}, **options)
    assert slow.content == half.content
    assert slow.response.headers["X-Warnings"] == "speed 0.25 is out of reach, it is 0.5"
    assert half.response.headers["X-Warnings"] == ""


def test_null_is_the_same_as_nothing(server: Stack) -> None:
    given = {"input": "Hello.", "seed": 1, "response_format": "pcm"}
    nulls = dict.fromkeys(V1Body.model_fields) | given
    with_nulls, without = (server.post("/v1/audio/speech", body) for body in (nulls, given))
    assert with_nulls.status_code == 200
    assert with_nulls.content == without.content


def test_voices_are_known_in_any_case_and_languages_with_their_region(server: Stack) -> None:
    given = {"input": "Hello.", "seed": 1, "response_format": "pcm", "voice": "F3"}
    plain = server.post("/v1/audio/speech", given).content
    for other in ({"voice": "f3"}, {"voice": "NOVA"}, {"language": "en-US"}, {"language": "EN"}):
        assert server.post("/v1/audio/speech", given | other).content == plain, other
    refused = server.post("/v1/audio/speech", given | {"voice": "af_bella"})
    assert "OpenAI's names are known too: alloy" in refused.json()["error"]["message"]


def test_voices_are_mixed_under_either_name(server: Stack) -> None:
    given = {"input": "Hello.", "seed": 1, "response_format": "pcm"}
    one, other, mixed, same = (
        server.post("/v1/audio/speech", given | {"voice": voice}).content
        for voice in ("M1", "F3", "M1(3)+F3", "verse(3) + Nova")
    )
    assert mixed == same and mixed not in (one, other)


def test_opus_has_one_of_its_own_rates(server: Stack) -> None:
    for asked, given in ((16_000, 16_000), (24_000, 24_000), (22_050, 48_000), (None, 48_000)):
        body = {"input": "Hello.", "response_format": "opus", "sample_rate": asked}
        answer = server.post("/v1/audio/speech", body)
        assert answer.headers["X-Sample-Rate"] == str(given)
        # Opus always tells 48 kHz to its players; the header inside holds what went in.
        assert int.from_bytes(answer.content[40:44], "little") == given


def test_warnings_come_in_a_header(server: Stack) -> None:
    answer = server.post(
        "/v1/audio/speech", {"input": "Say 안녕 and 好.", "response_format": "pcm"}
    )
    assert "its language is en; Korean is ko" in answer.headers["X-Warnings"]
    assert "U+597D" in answer.headers["X-Warnings"]


def test_a_cancelled_speech_breaks_off_without_a_fault_in_the_log(gated: Stack) -> None:
    body = {"input": f"{TEXT} Here is the gate.", "response_format": "pcm"}
    with gated.shut_gate(), gated.post("/v1/audio/speech", body, stream=True) as answer:
        blocks = answer.iter_content(4096)
        next(blocks)
        gated.delete(f"/jobs/{answer.headers['X-Job-Id']}")
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            for _ in blocks:
                pass
    wait_for(lambda: "broken off: The job was cancelled." in gated.log("web"), 20)
    assert "Error handling request" not in gated.log("web")


def test_other_errors_are_enveloped_too(server: Stack) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/audio/speech", 405),
        ("POST", "/v1/audio/speech", 400),
    ):
        answer = requests.request(method, server.url + path, timeout=10)
        assert answer.status_code == status
        assert answer.headers["X-Request-Id"].startswith("req_")
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_wrong_key_and_a_limit_are_what_their_client_takes_them_for(stack: Stack) -> None:
    stack.env |= {"SUPERTONIC_API_KEYS": "right", "SUPERTONIC_RATE_LIMIT": "1/minute"}
    stack.start_redis()
    stack.start_web()
    wait_for(lambda: stack.get("/livez").status_code == 200)
    options = {"base_url": f"{stack.url}/v1", "max_retries": 0}
    with openai.OpenAI(api_key="wrong", **options) as client:
        with pytest.raises(openai.AuthenticationError, match="that was sent is none"):
            create(client)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    with openai.OpenAI(api_key="right", **options) as client:
        with pytest.raises(openai.InternalServerError, match="No speech worker"):
            create(client)
        with pytest.raises(openai.RateLimitError) as refused:
            create(client)
    assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    for path in ("voices", "models"):
        # Open WebUI asks for both without a key.
        assert stack.get(f"/v1/audio/{path}").status_code == 200
    assert 1 <= int(refused.value.response.headers["Retry-After"]) <= 60
