"""What an engine is asked for and what it answers, and how a text that is too long is parted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from supertonic.characters import MAX_IDS, count_ids
from supertonic.text import split_text


@dataclass(frozen=True)
class Utterance:
    text: str
    language: str
    voice: str  # or a mixture, such as M1(2)+F3
    steps: int
    speed: float
    seed: int
    index: int  # which chunk of its request; with the seed it decides the noise


@dataclass(frozen=True, eq=False)
class Audio:
    samples: np.ndarray  # (N,) float32, as the model made them
    sample_rate: int


OnSlice = Callable[[int, np.ndarray], bool | None]  # true: the rest in one piece, please


def joined(parts: Sequence[Audio]) -> Audio:
    """One after the other."""
    if len(parts) == 1:
        return parts[0]
    samples = np.concatenate([part.samples for part in parts])
    return Audio(samples, parts[0].sample_rate)


def in_parts(utterance: Utterance, longest: int) -> list[Utterance]:
    """The utterance itself, or as many as its text needs: none has more than so many characters
    or, as Hangul has sooner, than the model takes ids.
    """
    if len(utterance.text) <= longest and count_ids(utterance.text) <= MAX_IDS:
        return [utterance]
    chunks = split_text(
        utterance.text, utterance.language, first_chars=longest, target_chars=longest
    )
    # Each part has its own noise; a request has fewer chunks than this.
    return [
        replace(utterance, text=chunk.text, index=utterance.index + (number << 32))
        for number, chunk in enumerate(chunks)
    ]
