"""Voices by their names, and mixtures of them. Standard library only."""

import re
from collections.abc import Collection

from supertonic.errors import UnknownVoice

VOICES = ("M1", "M2", "M3", "M4", "M5", "F1", "F2", "F3", "F4", "F5")
MOST_MIXED = 5
NUMBER = r"[0-9]{1,4}(?:\.[0-9]{1,4})?"


def shares(voice: str, known: Collection[str]) -> dict[str, float]:
    """What a voice consists of, by name, 1 in all: ``M1`` is one voice, ``M1+F2`` two of them in
    equal parts, and ``M1(3)+F2`` has three parts of the first.

    UnknownVoice says what is wrong with it.
    """
    if voice in known:
        return {voice: 1.0}
    if not known:
        raise UnknownVoice("there is no voice that all workers have")
    parts = voice.split("+", MOST_MIXED)
    if len(parts) > MOST_MIXED:
        raise UnknownVoice(f"at most {MOST_MIXED} voices can be mixed")
    weights: dict[str, float] = {}
    for part in parts:
        name, weight = _name_and_weight(part.strip(), known)
        if name not in known:
            raise UnknownVoice(_allowed(list(known), is_mixed=len(parts) > 1))
        weights[name] = weights.get(name, 0.0) + weight
    total = sum(weights.values())
    if total == 0:
        raise UnknownVoice("a mixture needs one part at least")
    return {name: weight / total for name, weight in weights.items() if weight}


def _allowed(names: list[str], is_mixed: bool) -> str:
    named = f"must be one of {', '.join(names)}"
    if is_mixed:
        return f"each of a mixture {named}"
    return f"{named}, or a mixture such as {names[0]}(2)+{names[-1]}" if names[1:] else named


def _name_and_weight(part: str, known: Collection[str]) -> tuple[str, float]:
    """``F2(3)`` are three parts of F2, ``F2`` is one."""
    name, bracket, number = part.removesuffix(")").rpartition("(")
    is_weighted = part not in known and part.endswith(")") and bracket
    if not is_weighted or not re.fullmatch(NUMBER, number.strip()):
        return part, 1.0
    return name.strip(), float(number)
