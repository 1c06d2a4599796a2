"""README.md is run: every example against the real service, every list against the code."""

import base64
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websocket
import yaml

from app.errors import TITLES
from tasks.settings import PREFIX, Settings
from tests.readme_blocks import README, blocks, scripts, table
from tests.sse import samples_of
from tests.stack import ROOT, Stack

LIMIT_S = 120
ADDRESS = "127.0.0.1:8002"
ROUTE = re.compile(r"\b(GET|POST|DELETE|WS) (/[^\s`\"',)]*)")

Run = Callable[..., str]


@pytest.fixture
def run(server: Stack, tmp_path: Path) -> Run:
    """Run a README script in an empty folder, with the server's address in place of README's."""

    def run(script: str, *command: str) -> str:
        script = script.replace(ADDRESS, server.url.removeprefix("http://"))
        # What README's readers do not see: a refused request ends the script.
        (tmp_path / ".curlrc").write_text("fail-with-body\nshow-error\nsilent\n")
        ended = subprocess.run(
            [*command, script.replace(".venv/bin/python", sys.executable)],
            cwd=tmp_path,
            env=os.environ | {"CURL_HOME": str(tmp_path), "PYTHONWARNINGS": "error"},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    return run


def check_sound(wav: Path | bytes) -> int:
    """Decode, hear something; returns the number of samples."""
    samples = samples_of(wav if isinstance(wav, bytes) else wav.read_bytes())
    assert np.abs(samples).max() > 500
    return len(samples)


def check_events(text: str) -> None:
    """The chunks of recorded events sound, and the last event is the good end."""
    events = parse_events(text)
    assert events[-1][0] == "done"
    chunks = [data for event, data in events if event == "chunk"]
    assert chunks and chunks[-1]["index"] == chunks[-1]["total"] - 1
    for data in chunks:
        if "audio_base64" in data:
            assert check_sound(base64.b64decode(data["audio_base64"])) == data["n_samples"]


def parse_events(text: str) -> list[tuple[str, Any]]:
    found = re.findall(r"^id: \d+\nevent: (\w+)\ndata: (.*)$", text, re.MULTILINE)
    return [(event, json.loads(data)) for event, data in found]


# -- examples that are run -------------------------------------------------------------------


@pytest.mark.parametrize("heading", scripts("bash"))
def test_the_commands_under_each_heading_work(heading: str, run: Run, tmp_path: Path) -> None:
    script = scripts("bash")[heading]
    run(script, "bash", "-euo", "pipefail", "-c")
    for name in re.findall(r"(?:-o|--out) ([\w.]+)", script):
        path = tmp_path / name
        assert path.stat().st_size > 0, name
        if path.suffix == ".wav":
            check_sound(path)
        elif path.suffix == ".sse":
            check_events(path.read_text())
    for path in tmp_path.glob("*.wav"):
        check_sound(path)


def test_the_long_job_is_fetched_whole_and_in_part(run: Run, tmp_path: Path) -> None:
    run(scripts("bash")["A long job"], "bash", "-euo", "pipefail", "-c")
    whole = (tmp_path / "book.wav").read_bytes()
    assert (tmp_path / "beginning.part").read_bytes() == whole[:100_000]
    events = parse_events((tmp_path / "rest.sse").read_text())
    first = events[0][1]
    assert first["index"] == 3, "event 3 is chunk 2, and it was seen"
    assert sum(check_sound(base64.b64decode(data["audio_base64"])) for _, data in events[:-1]) > 0


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.heading)
def test_python_examples_save_speech(block: Any, run: Run, tmp_path: Path) -> None:
    run(block.text, sys.executable, "-c")
    saved = list(tmp_path.glob("*.wav"))
    assert saved
    for path in saved:
        assert check_sound(path) > 20_000


def test_the_javascript_example_saves_speech(run: Run, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        message = "node is not installed (Debian: nodejs)"
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    (block,) = blocks("javascript")
    printed = run(block.text, node, "--input-type=module", "--eval")
    saved = list(tmp_path.glob("javascript-*.wav"))
    assert len(saved) == len(printed.splitlines()) >= 1
    assert sum(check_sound(path) for path in saved) > 20_000


# -- requests and answers that are shown -----------------------------------------------------


def shape(value: Any) -> Any:
    """A JSON value with its scalars replaced by their kind; lists by their first item."""
    match value:
        case dict():
            return {name: shape(item) for name, item in value.items()}
        case list():
            return [shape(item) for item in value[:1]]
        case bool():
            return "truth"
        case int() | float():
            return "number"
        case str():
            return "text"
    return value


def ask(server: Stack, about: str) -> Any:
    """The JSON answer to ``METHOD /path BODY`` as a note writes it."""
    method, path, *body = about.split(" ", 2)
    sent = [json.loads(text) for text in body] or [json.loads(b.text) for b in bodies(about)]
    if method == "GET":
        return server.get(path).json()
    assert method == "POST" and sent
    return server.post(path, sent[0]).json()


def bodies(about: str) -> list[Any]:
    return [block for block in blocks("json", "body of") if block.about == about]


@pytest.mark.parametrize("block", blocks("json", "answer of"), ids=lambda block: block.about)
def test_answers_look_as_shown(block: Any, server: Stack) -> None:
    assert shape(ask(server, block.about)) == shape(json.loads(block.text))


@pytest.mark.parametrize("block", blocks("json", "body of"), ids=lambda block: block.about)
def test_request_bodies_are_accepted(block: Any, server: Stack) -> None:
    _, path = block.about.split()
    assert server.post(path, json.loads(block.text)).ok


def test_the_events_of_a_stream_look_as_shown(server: Stack) -> None:
    (block,) = blocks("text", "events of")
    shown = parse_events(block.text)
    text = " ".join(data["text"] for event, data in shown if event == "chunk")
    body = {"text": text, "seed": 1}
    with server.stream(body) as response:
        got = parse_events(response.content.decode())
    assert [(event, shape(data)) for event, data in got] == [(e, shape(d)) for e, d in shown]


@pytest.mark.parametrize("block", blocks("text", "conversation on"))
def test_the_websocket_conversations_go_as_shown(block: Any, server: Stack) -> None:
    address = server.url.replace("http", "ws") + block.about.split()[1]
    ws = websocket.create_connection(address, timeout=30)
    for line in block.text.splitlines():
        direction, shown = line.split(" ", 1)
        if direction == ">":
            ws.send(shown)
        elif shown.startswith("("):
            assert len(ws.recv()) == 2 * heard["n_samples"]  # noqa: F821
        else:
            heard = json.loads(ws.recv())
            expected = json.loads(shown)
            assert (heard["type"], shape(heard)) == (expected["type"], shape(expected))
    ws.close()


# -- examples that are not run ---------------------------------------------------------------


def not_run() -> str:
    return "".join(block.text for block in blocks("bash", "not run"))


def test_every_block_is_run_or_says_why_not() -> None:
    for block in blocks("bash"):
        assert block.note == "" or (block.note == "not run" and block.about), block
    for block in blocks("json"):
        assert block.note in ("answer of", "body of"), block
    assert {block.note for language in ("python", "javascript") for block in blocks(language)} == {
        ""
    }


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make ([a-z-]+)", not_run()))))
def test_make_targets_exist(target: str) -> None:
    dry = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr
    assert f"\n{target}:" in (ROOT / "Makefile").read_text() or f" {target}" in dry.stdout


def test_make_targets_in_the_prose_exist_too() -> None:
    named = set(re.findall(r"`(?:[A-Z_]+=\S+ )?make ([a-z-]+)`", README.read_text()))
    listed = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"run", "model", "test"} <= named <= listed


def test_compose_commands_name_profiles_and_services_that_exist() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    profiles = {name for service in services.values() for name in service.get("profiles", ())}
    lines = [line for line in not_run().splitlines() if "docker compose" in line]
    assert set(re.findall(r"--profile (\S+)", "\n".join(lines))) == profiles
    named = re.findall(r"(?:--scale|run --rm) ([a-z-]+)", "\n".join(lines))
    assert named and set(named) <= services.keys()


def test_every_promise_names_a_test_that_exists() -> None:
    promises = (ROOT / "docs/guarantees.md").read_text()
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", promises)
    assert len(named) > 20
    for file, test in named:
        assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"


# -- lists that are held against the code ----------------------------------------------------


@functools.cache
def routes() -> set[tuple[str, str]]:
    """(method, path) of everything the web offers; asked in a process of its own."""
    code = (
        "import json; from app import create_app\n"
        "print(json.dumps([[r.rule, sorted(r.methods), r.websocket]"
        " for r in create_app().url_map.iter_rules() if r.endpoint != 'static']))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    found = set()
    for rule, methods, is_websocket in json.loads(printed):
        path = re.sub(r"<\w+>", "{id}", rule)
        kinds = {"WS"} if is_websocket else set(methods) - {"HEAD", "OPTIONS"}
        found |= {(kind, path) for kind in kinds}
    return found


def test_the_table_of_routes_is_the_servers_own() -> None:
    shown = {tuple(route.split(" ")) for route, _ in table("API", 2)}
    assert shown == routes()


def test_every_route_has_an_example_and_none_is_invented() -> None:
    text = README.read_text()
    paths = {path for _, path in routes()}
    named = {path.partition("?")[0] for _, path in ROUTE.findall(text)}
    assert named <= paths
    shown = re.findall(rf"{ADDRESS}(/[\w/$.-]*)", text)
    called = {re.sub(r"/(\$JOB|tts-1)\b", "/{id}", path) for path in shown} - {"/v1"}
    assert called == paths


def test_the_table_of_settings_is_the_programs_own() -> None:
    known = {PREFIX + spec.name.upper(): spec for spec in fields(Settings)}
    shown = {name: default for name, default, _ in table("Settings", 3)}
    assert list(shown) == list(known)
    for name, default in shown.items():
        kind: Any = known[name].type
        assert kind(default) == known[name].default, name


def test_no_variable_is_named_that_does_not_exist() -> None:
    known = {PREFIX + spec.name.upper() for spec in fields(Settings)}
    for path in (README, ROOT / "docs" / "architecture.md", ROOT / "CHANGELOG.md"):
        assert set(re.findall(rf"{PREFIX}[A-Z0-9_]+", path.read_text())) <= known


def test_the_table_of_errors_holds_the_statuses_there_are() -> None:
    shown = {int(status) for row in table("Errors", 2) for status in row[0].split(", ")}
    assert shown <= TITLES.keys()
    used = re.findall(r"Problem\((\d{3})", "".join(p.read_text() for p in ROOT.glob("app/*.py")))
    assert {int(status) for status in used} <= shown


def listed_files() -> set[str]:
    """Paths in README's file tree; an indented name lies in the folder above it."""
    (block,) = (block for block in blocks("text") if block.heading == "The files")
    found, folder = set(), ""
    for line in block.text.splitlines():
        names, _, _ = line.strip().partition("  ")
        if not line.startswith(" "):
            folder = names if names.endswith("/") else ""
        inside = folder if line.startswith(" ") else ""
        found |= {inside + name for name in names.split(", ")}
    return found


def test_the_file_tree_is_complete_and_true() -> None:
    listed = listed_files()
    assert [name for name in listed if not (ROOT / name).exists()] == []
    sources = [
        path for folder in ("app", "supertonic", "tasks") for path in ROOT.glob(f"{folder}/*.py")
    ]
    sources += [path for path in ROOT.glob("*.*") if path.suffix in (".py", ".md", ".toml", ".yml")]
    folders = ROOT.glob("*/__init__.py")
    wanted = {str(path.relative_to(ROOT)) for path in sources}
    wanted |= {f"{path.parent.name}/" for path in folders}
    assert wanted - listed == set()


def test_links_lead_somewhere() -> None:
    text = README.read_text()
    headings = {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings
        elif not target.startswith("https://"):
            assert (ROOT / target).exists(), target


def test_defaults_and_limits_of_fields_are_those_the_server_tells(server: Stack) -> None:
    told = server.get("/voices").json()
    shown = {row[0]: (row[1], row[2]) for row in table("API", 3)}
    for name, default in told["defaults"].items():
        assert json.loads(shown[name][0]) == default
    assert f"{told['limits']['text_chars']:,}" in shown["text"][1]
    for name in ("steps", "speed", "pause_s"):
        limits = told["limits"][name]
        least, most, *_ = re.findall(r"[\d.]+", shown[name][1])
        assert (float(least), float(most)) == (limits["min"], limits["max"]), name
