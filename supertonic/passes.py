"""Which utterances go through the model together."""

from collections.abc import Sequence

from supertonic.config import ModelConfig


def plan_passes(sizes: Sequence[float], size_per_pass: float) -> list[list[int]]:
    """Which rows are computed together: similar sizes, as many as would make at most
    `size_per_pass` if all were like the largest of them. One above that gets a pass of its own.
    """
    passes: list[list[int]] = []
    for row in sorted(range(len(sizes)), key=lambda row: sizes[row]):
        # Sorted, so this row is the largest so far.
        if passes and sizes[row] * (len(passes[-1]) + 1) <= size_per_pass:
            passes[-1].append(row)
        else:
            passes.append([row])
    return passes


def size_per_pass(config: ModelConfig, device: str) -> float:
    """How much goes through the model at once, in characters at speed 1.

    Measured, milliseconds per row of the prepared model on one core at 2 steps, for 1 / 2 / 4 / 8
    rows at a time: full size, 26 characters: 125 / 98 / 80 / 71; 110 characters: 380 / 373 / 347;
    built-in size, 26 characters, for 1 / 8 / 16 / 32: 9.2 / 1.9 / 1.5 / 1.3. Most is gained by
    some 256 characters in full size and 1,000 in a small one; smaller passes leave more of them
    for the other cores. A GPU takes everything the caller put together.
    """
    if device.startswith("cuda"):
        return float("inf")
    return 1000 if is_small(config) else 256


def is_small(config: ModelConfig) -> bool:
    """Where the time goes into starting operations rather than into multiplying."""
    return config.vocoder.width < 256
