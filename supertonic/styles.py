"""The style numbers behind a voice, read from a JSON file.

A style is two sets of tokens of unit length, one for the sound and one for the duration. The
file says neither which model it belongs to nor whether it is intact, so everything is checked.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from supertonic.errors import VoiceError
from supertonic.voices import VOICES

NORM_TOLERANCE = 1e-3  # published tokens have unit length to 3e-7; this leaves room for rounding


@dataclass(frozen=True, eq=False)
class Style:
    ttl: np.ndarray  # (n_style, style_dim) float32, how the voice sounds
    dp: np.ndarray  # (8, 16) float32, how fast it speaks


def load_style(path: str | Path, ttl_shape: tuple[int, int], dp_shape: tuple[int, int]) -> Style:
    """Read one voice. VoiceError says what is wrong with the file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise VoiceError(f"{path}: no such voice file") from error
    except (OSError, ValueError) as error:
        raise VoiceError(f"{path}: not a voice style in JSON: {error}") from error
    return Style(
        ttl=_tokens(content, "style_ttl", ttl_shape, path),
        dp=_tokens(content, "style_dp", dp_shape, path),
    )


def load_styles(
    directory: str | Path, ttl_shape: tuple[int, int], dp_shape: tuple[int, int]
) -> dict[str, Style]:
    """Read every `<voice>.json` of a directory: the ten known voices first, then the others."""
    paths = {path.stem: path for path in sorted(Path(directory).glob("*.json"))}
    if not paths:
        raise VoiceError(f"{directory}: no voices; expected files such as {VOICES[0]}.json")
    names = [name for name in VOICES if name in paths]
    names += [name for name in paths if name not in VOICES]
    return {name: load_style(paths[name], ttl_shape, dp_shape) for name in names}


def mix(styles: Mapping[str, Style], parts: Mapping[str, float]) -> Style:
    """The style between some, by their shares. Its tokens have unit length as theirs have."""
    ttl = sum(share * styles[name].ttl for name, share in parts.items())
    dp = sum(share * styles[name].dp for name, share in parts.items())
    return Style(_of_unit_length(ttl), _of_unit_length(dp))


def _of_unit_length(tokens: Any) -> np.ndarray:
    lengths = np.linalg.norm(tokens, axis=1, keepdims=True)
    return np.asarray(tokens / np.maximum(lengths, 1e-6), dtype=np.float32)


def _tokens(content: Any, key: str, shape: tuple[int, int], path: str | Path) -> np.ndarray:
    entry = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entry, dict) or not {"dims", "data"} <= entry.keys():
        raise VoiceError(f"{path}: {key}: expected an object with dims and data")
    if entry["dims"] != [1, *shape]:
        raise VoiceError(f"{path}: {key}: expected dims {[1, *shape]}, got {entry['dims']}")
    try:
        tokens = np.asarray(entry["data"], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise VoiceError(f"{path}: {key}: data is not an array of numbers: {error}") from error
    if tokens.shape != (1, *shape):
        raise VoiceError(f"{path}: {key}: expected data of shape {(1, *shape)}, got {tokens.shape}")
    lengths = np.linalg.norm(tokens[0], axis=1)
    # Written so that NaN and infinity fail as well.
    bad = np.flatnonzero(~(np.abs(lengths - 1) <= NORM_TOLERANCE))
    if bad.size:
        token = int(bad[0])
        raise VoiceError(
            f"{path}: {key}: token {token} has length {lengths[token]:.4g}, expected 1"
        )
    return tokens[0]
