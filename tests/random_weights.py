"""Weights and styles that anyone can regenerate from the names alone, for any model size.

Used with the golden values: the same recipe made the weights that the golden numbers come from.
"""

import functools
import math
import zlib

import numpy as np
import torch

from supertonic.config import ModelConfig
from supertonic.model import Supertonic
from supertonic.styles import Style

# On a busy machine the threads of one operation wait for each other, up to a hundred times longer
# than they work; the tests compare numbers, not speed.
torch.set_num_threads(1)


def z(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float64 numbers that depend on the name only."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)


def random_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    return torch.from_numpy(np.asarray(_value(name, shape), dtype=np.float32))


def _value(name: str, shape: tuple[int, ...]) -> np.ndarray | float:
    last = name.rsplit(".", 1)[-1]
    if last == "theta":
        half = shape[-1]
        return (10 * 10000 ** (-np.arange(half) / half)).reshape(shape)
    if last == "increments":
        return np.arange(shape[1], dtype=np.float64).reshape(shape)
    if name.endswith("normalizer.scale"):
        return 0.25
    if name.endswith(("predictor.activation.weight", "head.act.weight")):
        return np.full(shape, 0.25)
    if name == "duration_predictor.predictor.layers.1.bias":
        return np.full(shape, math.log(1.6))
    noise = z(name, shape)
    if last in ("running_var", "latent_std"):
        return 1 + 0.1 * np.abs(noise)
    if last in ("running_mean", "latent_mean", "emb_rel_k", "emb_rel_v"):
        return 0.1 * noise
    if last == "gamma":
        return 0.2 + 0.1 * noise
    if last == "Tanh_output_0":
        return np.tanh(noise)
    if last == "key_emb":
        return 0.3 * noise
    if ".norm" in name and last == "weight":
        return 1 + 0.1 * noise
    if last == "sentence_token" or name.endswith("char_embedder.weight"):
        return noise
    if name == "duration_predictor.predictor.layers.1.weight" or last == "bias":
        return 0.02 * noise
    return noise / math.sqrt(math.prod(shape[1:]))


def random_state(model: Supertonic) -> dict[str, torch.Tensor]:
    """One tensor per state name; shared tensors take the first of their names."""
    first = {name: names[0] for names in model.shared_names for name in names}
    return {
        name: random_tensor(first.get(name, name), tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
    }


def random_model(config: ModelConfig) -> Supertonic:
    with torch.device("meta"):
        model = Supertonic(config)
    model.load_state_dict(random_state(model), strict=True, assign=True)
    return model.eval()


def random_style(voice: str, config: ModelConfig) -> Style:
    duration = config.duration_predictor
    return Style(
        ttl=_tokens(f"{voice}.style_ttl", (1, config.n_style, config.style_dim)),
        dp=_tokens(f"{voice}.style_dp", (1, duration.n_style, duration.style_dim)),
    )


def _tokens(name: str, shape: tuple[int, ...]) -> np.ndarray:
    tokens = z(name, shape)
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    return unit[0].astype(np.float32)


@functools.cache
def full_model() -> Supertonic:
    """Supertonic 2 in full size, made once per test run."""
    return random_model(ModelConfig())
