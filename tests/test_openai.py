"""OpenAI's own client, and what it and others rely on beyond it."""

import base64
import io
import json
from collections.abc import Iterator
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
from tests.sse import SAMPLE_RATE, samples_of
from tests.stack import Stack, wait_for

TEXT = "Good evening. This is a second sentence, so that there are several chunks. " * 4


@pytest.fixture
def client(server: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


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
        heard, found = soundfile.read(io.BytesIO(answer.content), dtype="int16")
    assert found == rate == {"pcm": 24_000, "opus": 48_000}.get(kind, SAMPLE_RATE)
    spoken = native(server, text=TEXT, voice="F3", seed=7)
    if kind == "mp3":
        # A frame of silence in front, and what the encoder looks ahead.
        frame = 1152 if rate >= 32_000 else 576
        late = frame + 576 + 529
        assert 0 <= len(heard) - late - len(spoken) < 2 * frame
        heard = heard[late : late + len(spoken)]
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


def test_the_sound_comes_while_the_rest_is_made(client: openai.OpenAI, server: Stack) -> None:
    for kind in ("pcm", "wav", "mp3", "opus"):
        with client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="alloy", input=TEXT * 8, response_format=kind
        ) as answer:
            blocks = answer.iter_bytes()
            next(blocks)
            job_id = answer.headers["X-Job-Id"]
            assert answer.headers["X-Request-Id"] == job_id
            assert server.get(f"/jobs/{job_id}").json()["state"] == "running"
            assert sum(map(len, blocks)) > 100_000


def test_closing_the_connection_cancels_the_speech(client: openai.OpenAI, server: Stack) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input=TEXT * 30, response_format="pcm"
    ) as answer:
        next(answer.iter_bytes())
        job_id = answer.headers["X-Job-Id"]
    wait_for(lambda: server.get(f"/jobs/{job_id}").json()["state"] == "cancelled", 10)


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
    assert names[:2] == ["tts-1", "tts-1-hd"] and len(names) == 3
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
        ({"response_format": "aac"}, "response_format", "mp3, opus, flac, wav or pcm"),
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


def test_null_is_the_same_as_nothing(server: Stack) -> None:
    given = {"input": "Hello.", "seed": 1, "response_format": "pcm"}
    nulls = dict.fromkeys(V1Body.model_fields) | given
    with_nulls, without = (server.post("/v1/audio/speech", body) for body in (nulls, given))
    assert with_nulls.status_code == 200
    assert with_nulls.content == without.content


def test_other_errors_are_enveloped_too(server: Stack) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/audio/speech", 405),
        ("POST", "/v1/audio/speech", 400),
    ):
        answer = requests.request(method, server.url + path, timeout=10)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_wrong_key_and_a_limit_are_what_their_client_takes_them_for(stack: Stack) -> None:
    stack.env |= {"SUPERTONIC_API_KEYS": "right", "SUPERTONIC_RATE_LIMIT": "1/minute"}
    stack.start_redis()
    stack.start_web()
    wait_for(lambda: stack.get("/livez").status_code == 200)
    options = {"base_url": f"{stack.url}/v1", "max_retries": 0}
    with openai.OpenAI(api_key="wrong", **options) as client:
        with pytest.raises(openai.AuthenticationError):
            create(client)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    with openai.OpenAI(api_key="right", **options) as client:
        with pytest.raises(openai.InternalServerError, match="No speech worker"):
            create(client)
        with pytest.raises(openai.RateLimitError) as refused:
            create(client)
    assert refused.value.code == "rate_limit_exceeded"
    assert 1 <= int(refused.value.response.headers["Retry-After"]) <= 60
