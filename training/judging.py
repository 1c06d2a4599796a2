"""Measures of speech: what is heard, whether the sentence is recognised, how far the sound is.

Needs neither espeak-ng nor the corpus; the tests use it with what lies in `tests/data`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein

from training.recogniser import BANDS, log_mel

CEPSTRA = 13


@dataclass(frozen=True)
class Score:
    """Sums over utterances, so that scores can be added up."""

    errors: int = 0
    phones: int = 0
    found: int = 0
    utterances: int = 0

    def __add__(self, other: "Score") -> "Score":
        return Score(
            self.errors + other.errors, self.phones + other.phones,
            self.found + other.found, self.utterances + other.utterances,
        )  # fmt: skip

    @property
    def phone_error_rate(self) -> float:
        return self.errors / max(1, self.phones)

    @property
    def retrieved(self) -> float:
        return self.found / max(1, self.utterances)


def score(heard: list[str], index: int, sentences: Sequence[list[str]]) -> Score:
    """Compare what was heard with sentence `index`, and with all the others."""
    distances = [Levenshtein.distance(heard, phones) for phones in sentences]
    # The nearest by errors per phone: short sentences are not nearer for being short.
    relative = [d / max(len(p), 1) for d, p in zip(distances, sentences, strict=True)]
    found = relative[index] < 1 and relative[index] == min(relative)
    return Score(distances[index], len(sentences[index]), int(found), 1)


def cepstra(samples: np.ndarray) -> np.ndarray:
    """(F, 13) mel-cepstra without the loudness term."""
    bands = log_mel(samples).numpy()
    order = np.arange(1, CEPSTRA + 1)[:, None]
    basis = np.cos(np.pi * order * (np.arange(BANDS) + 0.5) / BANDS) * 2 / BANDS
    # Half: log amplitude, on which the distortion is the root mean square difference in dB.
    cepstrum: np.ndarray = 0.5 * bands @ basis.T
    return cepstrum


def distortion(a: np.ndarray, b: np.ndarray) -> float:
    """Mel-cepstral distortion in dB along the best alignment (dynamic time warping)."""
    x, y = cepstra(a), cepstra(b)
    square = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    frames = 10 / np.log(10) * np.sqrt(2 * np.maximum(square, 0))
    costs: list[list[float]] = frames.tolist()
    infinity = float("inf")
    total = [(infinity, 0)] * (len(y) + 1)
    total[0] = (0.0, 0)
    for row in costs:
        line = [(infinity, 0)] * (len(y) + 1)
        for j, cost in enumerate(row):
            best = min(total[j], total[j + 1], line[j])
            line[j + 1] = (best[0] + cost, best[1] + 1)
        total = line
    path_cost, steps = total[-1]
    return path_cost / max(1, steps)
