"""Voices as Home Assistant sees them: the list it is given, and what it means by one of them."""

from collections.abc import Sequence
from typing import Any

from app.errors import field_problem
from app.jobs import Speech
from app.offer import LANGUAGE_NAMES, languages_of, voices_of
from app.version import service_version
from tasks.workers import WorkerRecord

# Who made it and where it is from, as clients may show it.
OURS = {"name": "Supertonic server", "url": ""}
SUPERTONE = {"name": "Supertone", "url": "https://huggingface.co/Supertone/supertonic-2"}


def info(speech: Speech) -> dict[str, Any]:
    """The data of an ``info`` event: one program with all voices in all languages.

    A client names a voice or a language, not both. So a voice is offered once in each language it
    speaks: under its own name in the usual one, as ``M1-es`` in another.
    """
    workers, usual = speech.workers(), speech.settings.language
    program = {
        "name": "supertonic",
        "description": "Supertonic server",
        "attribution": OURS,
        "installed": True,
        "version": service_version(),
        "supports_synthesize_streaming": True,
        "voices": [
            {
                "name": voice if code == usual else f"{voice}-{code}",
                "description": f"{voice}, {LANGUAGE_NAMES.get(code, code)}",
                "languages": [code],
                "installed": True,
            }
            | _origin(workers)
            for voice in voices_of(workers)
            for code in languages_of(workers)
        ],
    }
    return {"tts": [program]}


def _origin(workers: Sequence[WorkerRecord]) -> dict[str, Any]:
    """Of the model; without a worker nobody knows which it is going to be."""
    if not workers:
        return {"attribution": SUPERTONE, "version": None}
    attribution = OURS if workers[0].is_builtin else SUPERTONE
    return {"attribution": attribution, "version": workers[0].fingerprint}


def manner(data: dict[str, Any], speech: Speech) -> dict[str, Any]:
    """Our fields for the ``voice`` in an event: by a name from ``info``, by a language, or neither.

    Raises:
        Problem: 422 for a voice that is no object, or a format that is not known.
    """
    if data.get("text_format") not in (None, "text", "ssml"):
        raise field_problem("text_format", data["text_format"], "must be text or ssml")
    wanted = data.get("voice") or {}
    if not isinstance(wanted, dict):
        raise field_problem("voice", wanted, "must be an object with a name or a language")
    fields = {"language": wanted.get("language") or speech.settings.language}
    name = wanted.get("name") or wanted.get("speaker")
    if not name:
        return fields
    workers = speech.workers()
    if isinstance(name, str) and name not in voices_of(workers):
        voice, _, code = name.rpartition("-")
        if voice and code in languages_of(workers):
            return {"voice": voice, "language": code}
    return fields | {"voice": name}
