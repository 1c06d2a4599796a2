"""Each part loads only what it runs on: the web no torch, the model no queue and no web."""

import subprocess
import sys

from tests.stack import ROOT

TASKS = sorted(f"tasks.{path.stem}" for path in (ROOT / "tasks").glob("[a-z]*.py"))
APP = sorted(f"app.{path.stem}" for path in (ROOT / "app").glob("[a-z]*.py"))
SUPERTONIC = sorted(f"supertonic.{path.stem}" for path in (ROOT / "supertonic").glob("[a-z]*.py"))
MODEL = {"torch", "safetensors"}
SERVICE = {"celery", "kombu", "redis", "flask", "gunicorn", "pydantic"}


def loaded_by(*modules: str) -> set[str]:
    """Top-level packages in a fresh Python after these imports."""
    code = "; ".join(f"import {name}" for name in modules)
    code += "; import sys; print(*{name.split('.')[0] for name in sys.modules})"
    command = [sys.executable, "-W", "error", "-c", code]
    return set(subprocess.check_output(command, cwd=ROOT, text=True, timeout=120).split())


def test_the_web_loads_no_torch() -> None:
    assert {"app.api", "app.stream"} < set(APP)
    loaded = loaded_by(*APP)
    assert "flask" in loaded and not loaded & MODEL


def test_the_queue_loads_no_torch() -> None:
    """Not even the worker's module: Flower imports it to know the task, and has no torch."""
    assert {"tasks.worker", "tasks.files", "tasks.speaker"} < set(TASKS)
    loaded = loaded_by(*TASKS)
    assert "celery" in loaded and not loaded & (MODEL | {"flask"})


def test_the_model_loads_neither_queue_nor_web() -> None:
    assert "supertonic.engine" in SUPERTONIC
    loaded = loaded_by(*SUPERTONIC)
    assert "torch" in loaded and not loaded & SERVICE


def test_text_needs_nothing_but_python() -> None:
    loaded = loaded_by("supertonic.text", "supertonic.errors")
    assert not loaded & (MODEL | SERVICE | {"numpy"})
