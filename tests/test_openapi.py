"""The OpenAPI document is the server's own: every route, and every answer as described."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import validate

from app.answers import EVENTS
from tests.stack import ROOT, Stack
from tests.test_readme import parse_events, routes

KEY = "some-key"
LIMIT_S = 240


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole service on an engine that takes no time."""
    stack = Stack(
        tmp_path_factory.mktemp("quick"),
        NULL_BYTES="2000",
        SUPERTONIC_API_KEYS=KEY,
        SUPERTONIC_WEB_PROCESSES="1",
        SUPERTONIC_WEB_THREADS="40",
        SUPERTONIC_MAX_TEXT_CHARS="2000",
        SUPERTONIC_MAX_LONG_TEXT_CHARS="2000",
    )
    stack.start_redis()
    stack.start_worker(app="benchmarks.null_worker")
    stack.start_files()
    stack.start_web()
    stack.wait_ready()
    stack.session.headers["Authorization"] = f"Bearer {KEY}"
    yield stack
    stack.stop_all()


@pytest.fixture(scope="module")
def document(quick: Stack) -> Any:
    return quick.get("/openapi.json").json()


def test_the_document_is_openapi_3_1(document: Any) -> None:
    validate(document)
    assert document["openapi"].startswith("3.1")


def test_it_holds_every_route_and_no_other(document: Any) -> None:
    described = {
        (method.upper(), re.sub(r"\{\w+\}", "{id}", path))
        for path, methods in document["paths"].items()
        for method in methods
    }
    described -= {("GET", "/ws/synthesize")}
    assert described | {("WS", "/ws/synthesize")} == routes()


def test_it_knows_the_limits_and_voices_of_this_server(document: Any, quick: Stack) -> None:
    fields = document["components"]["schemas"]["FileBody"]["properties"]
    told = quick.get("/voices").json()
    assert fields["text"]["maxLength"] == told["limits"]["text_chars"] == 2000
    names, mixture = fields["voice"]["anyOf"]
    assert names["enum"] == [voice["id"] for voice in told["voices"]]
    for voice in ("M1+F3", "M1(2)+F3", "M1+M2+M3+M4+M5"):
        assert re.match(mixture["pattern"], voice), voice
        assert quick.post("/synthesize", {"text": "Hi.", "voice": voice}).status_code == 200
    for voice in ("M1", "M1+", "M1+F9", "M1(0)+F3", "M1+M2+M3+M4+M5+F1"):
        assert not re.match(mixture["pattern"], voice), voice
    assert fields["speed"]["maximum"] == told["limits"]["speed"]["max"]
    assert fields["steps"]["minimum"] == told["limits"]["steps"]["min"]


def test_events_are_as_described(quick: Stack) -> None:
    answer = quick.post("/synthesize/stream", {"text": "One. " * 60})
    events = parse_events(answer.content.decode())
    assert {event for event, _ in events} == {"accepted", "chunk", "done"}
    for event, data in events:
        EVENTS[event].model_validate(data)


def test_headers_are_as_described(document: Any, quick: Stack) -> None:
    for path, body in (
        ("/synthesize", {"text": "Hi.", "output_format": "wav"}),
        ("/synthesize/stream", {"text": "Hi."}),
        ("/synthesize/long", {"text": "Hi."}),
        ("/v1/audio/speech", {"input": "Hi."}),
    ):
        answer = quick.post(path, body)
        described = document["paths"][path]["post"]["responses"][str(answer.status_code)]
        own = {name for name in answer.headers if name.startswith("X-")}
        everywhere = {"X-Content-Type-Options", "X-Frame-Options", "X-Accel-Buffering"}
        assert own - everywhere <= set(described["headers"]), path


def test_keys_are_asked_for_where_they_are_needed(document: Any) -> None:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            is_open = path in ("/", "/ui", "/livez", "/readyz", "/voices", "/metrics")
            is_open |= path in ("/openapi.json", "/v1/audio/voices", "/v1/audio/models")
            assert ("security" not in operation) == is_open, path
            assert ("401" in operation["responses"]) != is_open, path
    assert {} not in document["paths"]["/jobs"]["get"]["security"], "this server has keys"


@pytest.mark.slow
def test_schemathesis_finds_nothing(quick: Stack, tmp_path: Any) -> None:
    """Good, bad and strange requests made from the document, and chains of them."""
    command = [sys.executable, "-m", "schemathesis.cli"]
    command += ["--config-file", str(ROOT / "tests/schemathesis.toml")]
    command += ["run", f"{quick.url}/openapi.json", "--max-examples", "6", "--no-color"]
    command += ["--continue-on-failure", "--generation-deterministic"]
    command += ["--header", f"Authorization: Bearer {KEY}"]
    environ = os.environ | {
        "SCHEMATHESIS_HOOKS": "tests.schemathesis_hooks",
        "PYTHONPATH": str(ROOT),
    }
    ended = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
    assert int(re.findall(r"(\d+) generated", ended.stdout)[0]) > 300
    web = quick.log("web")
    assert "unexpected error" not in web and "Traceback" not in web
