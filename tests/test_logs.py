"""One shape of log line for all processes, with a job's id to follow, and nobody's text in it."""

import io
import json
import logging
import secrets
import sys

import pytest

from tasks.logs import JsonLines, TextLines, facts, set_up
from tasks.settings import Settings, SettingsError
from tests.stack import Stack, wait_for

SECRET = "a-key-nobody-may-read"
# A word that no log line contains by itself.
WORD = "Quagmire"


def lines_of(stack: Stack, name: str) -> list[dict]:
    return [json.loads(line) for line in stack.log(name).splitlines()]


def test_a_job_can_be_followed_through_every_process(stack: Stack) -> None:
    stack.env |= {"SUPERTONIC_LOG_FORMAT": "json", "SUPERTONIC_API_KEYS": SECRET}
    stack.start_all()
    body = {"text": f"{WORD} is a word. " * 20}
    with_key = {"headers": {"Authorization": f"Bearer {SECRET}"}}
    stream = stack.post(f"/synthesize/stream?api_key={SECRET}", body)
    assert b"event: done" in stream.content
    job_id = stream.headers["X-Job-Id"]
    long_id = stack.post("/synthesize/long", body, **with_key).json()["job_id"]
    path = f"/jobs/{long_id}"
    wait_for(lambda: stack.get(path, **with_key).json()["state"] == "done", 30, "the long job")
    for name in ("web", "files", "worker"):
        stack.stop(name)

    lines = [line for name in ("web", "files", "worker") for line in lines_of(stack, name)]
    assert {line["process"] for line in lines} == {"web", "files", "worker"}
    for line in lines:
        assert line.keys() >= {"time", "level", "process", "pid", "logger", "event"}
    for name in ("web", "files", "worker"):
        assert SECRET not in stack.log(name)
        assert WORD not in stack.log(name)

    def story(job_id: str) -> list[tuple[str, str]]:
        told = sorted((line for line in lines if line.get("job_id") == job_id), key=by_time)
        return [(line["process"], line["event"]) for line in told]

    told = story(job_id)
    # A worker may write that it spoke a chunk before the web has written that it accepted the job,
    # or only after it was delivered.
    web = [step for step in told if step[0] == "web"]
    assert web == [("web", "accepted"), ("web", "delivered"), ("web", "request")]
    assert set(told) - set(web) == {("worker", "chunk spoken")}
    told = story(long_id)
    steps = [("web", "accepted"), ("worker", "chunk spoken"), ("files", "job moved")]
    assert {*steps, ("files", "job done")} <= set(told)

    spoken = [line for line in lines if line["event"] == "chunk spoken"]
    ours = [line for line in spoken if line["job_id"] == job_id]
    assert [line["chunk"] for line in sorted(ours, key=lambda line: line["chunk"])] == list(
        range(ours[0]["of"])
    )
    batches = {line["batch_id"]: line for line in lines if line["event"] == "batch"}
    assert all(line["batch_id"] in batches for line in spoken)
    assert sum(batch["chunks"] for batch in batches.values()) == len(spoken)
    asked = next(line for line in lines if line["event"] == "request" and line["status"] == 202)
    assert (asked["method"], asked["path"]) == ("POST", "/synthesize/long")


def by_time(line: dict) -> str:
    return line["time"]


def record(message: str, *args: object, **about: object) -> logging.LogRecord:
    made = logging.LogRecord("tasks.x", logging.INFO, __file__, 1, message, args, None)
    made.__dict__.update(facts(**about) if about else {})
    return made


def test_text_lines_end_with_the_facts() -> None:
    line = TextLines().format(record("batch", batch_id="b1", seconds=0.123456789))
    assert line.endswith(" INFO tasks.x batch batch_id=b1 seconds=0.123457")


def test_a_json_line_stays_one_line_whatever_it_holds() -> None:
    line = JsonLines("web").format(record("two\nlines %s", "\u2028", path="a\nb", odd={1, 2}))
    assert "\n" not in line
    assert json.loads(line)["event"] == "two\nlines \u2028"


def test_nobody_else_writes_a_line_of_text_or_to_the_terminal() -> None:
    line = TextLines().format(record("GET %s", "/x\n2026 INFO forged\x1b[2J\u2028", path="a\rb"))
    assert len(line.splitlines()) == 1 and line.isprintable()
    assert "/x\\x0a2026 INFO forged\\x1b[2J" in line and "path=a\\x0db" in line


def test_a_traceback_is_part_of_its_line() -> None:
    made = record("failed")
    try:
        raise ValueError("why")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = JsonLines("worker").format(made)
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("ValueError: why")


@pytest.mark.parametrize("formatter", [TextLines(), JsonLines("web")])
def test_a_key_in_an_address_is_left_out(formatter: logging.Formatter) -> None:
    key = secrets.token_hex(8)
    line = formatter.format(record("Error handling request /jobs?api_key=%s&limit=3", key))
    assert key not in line and "limit=3" in line


@pytest.mark.parametrize(
    "wrong, told",
    [({"log_format": "yaml"}, "text, json"), ({"log_level": "LOUD"}, "DEBUG, INFO")],
)
def test_an_unknown_level_or_format_is_refused(wrong: dict, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        set_up(Settings(**wrong), "web")


def test_set_up_twice_logs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    try:
        set_up(Settings(), "web")
        set_up(Settings(), "web")
        logging.getLogger("tasks.x").warning("once")
    finally:
        root.handlers[:], root.level = before, level
        logging.captureWarnings(False)
    assert written.getvalue().count("once") == 1
