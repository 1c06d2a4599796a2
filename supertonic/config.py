"""The sizes of a model: frozen, checked once, read everywhere as plain attributes.

The defaults are the published Supertonic 2. A smaller model of the same architecture brings a
`config.json` with the same fields; nothing below this file knows which of the two it runs.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from supertonic.characters import LANGUAGES
from supertonic.errors import ConfigError

Sizes = TypeVar("Sizes")


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    width: int = 256
    convnext_hidden: int = 1024
    dilations: tuple[int, ...] = (1, 1, 1, 1, 1, 1)
    attention_layers: int = 4
    heads: int = 4
    ffn_hidden: int = 1024
    style_heads: int = 2


@dataclass(frozen=True, kw_only=True)
class DurationPredictorConfig:
    width: int = 64
    convnext_hidden: int = 256
    dilations: tuple[int, ...] = (1, 1, 1, 1, 1, 1)
    attention_layers: int = 2
    heads: int = 2
    ffn_hidden: int = 256
    n_style: int = 8
    style_dim: int = 16
    head_hidden: int = 128


@dataclass(frozen=True, kw_only=True)
class VectorEstimatorConfig:
    width: int = 512
    convnext_hidden: int = 1024
    blocks: int = 4
    dilations: tuple[int, ...] = (1, 2, 4, 8)
    last_dilations: tuple[int, ...] = (1, 1, 1, 1)
    time_dim: int = 64
    time_hidden: int = 256
    attention_width: int = 256
    text_heads: int = 4
    style_heads: int = 2


@dataclass(frozen=True, kw_only=True)
class VocoderConfig:
    width: int = 512
    convnext_hidden: int = 2048
    dilations: tuple[int, ...] = (1, 2, 4, 1, 2, 4, 1, 1, 1, 1)
    head_hidden: int = 2048


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    vocabulary: int = 163
    sample_rate: int = 44100
    base_chunk_size: int = 512  # samples per base frame
    chunk_compress_factor: int = 6  # base frames per latent frame
    ldim: int = 24  # latent channels per base frame
    n_style: int = 50
    style_dim: int = 256
    languages: tuple[str, ...] = LANGUAGES  # those it was trained on; others are refused
    longest_text: int = 1000  # characters it can follow at a time; the engine cuts longer texts
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    duration_predictor: DurationPredictorConfig = DurationPredictorConfig()
    vector_estimator: VectorEstimatorConfig = VectorEstimatorConfig()
    vocoder: VocoderConfig = VocoderConfig()

    @property
    def latent_dim(self) -> int:
        """Channels of the latent that is denoised: 144 for Supertonic 2."""
        return self.ldim * self.chunk_compress_factor

    @property
    def samples_per_frame(self) -> int:
        """Audio samples that one latent frame stands for: 3072 for Supertonic 2."""
        return self.base_chunk_size * self.chunk_compress_factor

    @classmethod
    def load(cls, path: str | Path) -> "ModelConfig":
        """Read a `config.json`. ConfigError names a missing, unknown or impossible field."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: expected a JSON object of model sizes: {error}") from error
        config = _parse(cls, values, where=str(path), prefix="")
        config._check_heads(str(path))
        config._check_languages(str(path))
        return config

    def _check_languages(self, where: str) -> None:
        unknown = [code for code in self.languages if code not in LANGUAGES]
        if unknown or not self.languages:
            wanted = f"one or more of {', '.join(LANGUAGES)}"
            raise ConfigError(f"{where}: languages: expected {wanted}, got {list(self.languages)}")

    def _check_heads(self, where: str) -> None:
        text, duration = self.text_encoder, self.duration_predictor
        estimator = self.vector_estimator
        for name, width, heads in (
            ("text_encoder.heads", text.width, text.heads),
            ("text_encoder.style_heads", text.width, text.style_heads),
            ("duration_predictor.heads", duration.width, duration.heads),
            ("vector_estimator.text_heads", estimator.attention_width, 2 * estimator.text_heads),
            ("vector_estimator.style_heads", estimator.attention_width, estimator.style_heads),
            ("vector_estimator.time_dim", estimator.time_dim, 2),
        ):
            if width % heads:
                raise ConfigError(f"{where}: {name}: {heads} does not divide {width}")


def _parse(cls: type[Sizes], values: Any, where: str, prefix: str) -> Sizes:
    """Build the frozen dataclass `cls` from JSON `values`, every field present and none extra."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: {prefix or 'top level'}: expected an object, got {values!r}")
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise ConfigError(f"{where}: unknown key {prefix}{name}; known: {', '.join(known)}")
    parsed: dict[str, Any] = {}
    for name, field in known.items():
        if name not in values:
            raise ConfigError(f"{where}: missing key {prefix}{name}")
        value = values[name]
        if is_dataclass(field.type):
            parsed[name] = _parse(field.type, value, where, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif field.type is int and _is_size(value):
            parsed[name] = value
        elif field.type == tuple[int, ...] and _is_list(value, _is_size):
            parsed[name] = tuple(value)
        elif field.type == tuple[str, ...] and _is_list(value, lambda item: isinstance(item, str)):
            parsed[name] = tuple(value)
        else:
            kind = _KINDS[field.type]
            raise ConfigError(f"{where}: {prefix}{name}: expected {kind}, got {value!r}")
    return cls(**parsed)


_KINDS: dict[Any, str] = {
    int: "a positive integer",
    tuple[int, ...]: "a list of positive integers",
    tuple[str, ...]: "a list of words",
}


def _is_list(value: Any, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_right, value))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
