"""However the sound comes, in slices or as a whole, its encoded bytes are the same."""

import numpy as np
import pytest

from app.encoding import MEDIA_TYPES, encoder

RATE = 22_050


def encoded(kind: str, rate: int, parts: list[np.ndarray]) -> bytes:
    sound = encoder(kind, RATE, rate)
    return b"".join([*(sound.encode(part.tobytes()) for part in parts), *sound.finish()])


# Opus is left out: an Ogg file bears a random number.
@pytest.mark.parametrize("kind", [kind for kind in MEDIA_TYPES if kind != "opus"])
@pytest.mark.parametrize("rate", [RATE, 24_000])
def test_where_the_sound_was_cut_is_not_in_the_bytes(kind: str, rate: int) -> None:
    random = np.random.default_rng(0)
    # Now and then as loud as it can be, where resampled peaks go beyond.
    samples = (random.normal(0, 9000, 2 * RATE)).clip(-32_768, 32_767).astype("<i2")
    whole = encoded(kind, rate, [samples])
    for size in (317, 5_512, 20_000):
        parts = np.split(samples, range(size, len(samples), size))
        assert encoded(kind, rate, parts) == whole, size
