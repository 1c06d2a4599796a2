"""From a directory of files, a device and a precision to an engine."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from supertonic.characters import VOCABULARY
from supertonic.config import ModelConfig
from supertonic.cores import usable_cores
from supertonic.download import WEIGHTS
from supertonic.engine import Engine
from supertonic.errors import ConfigError, WeightsError
from supertonic.model import Supertonic
from supertonic.passes import is_small
from supertonic.prepared import check_precision, has_fast_bfloat16, prepare
from supertonic.styles import load_styles
from supertonic.weights import load_weights

BUILTIN = Path(__file__).parent / "builtin"
BUILTIN_DESCRIPTION = (
    "Small built-in voice: intelligible, monotone, made by this project from synthetic speech. "
    "Install the Supertonic 2 weights for natural speech."
)


class _Unfilled(TorchFunctionMode):
    """Layers built in here get memory, but no random numbers: those come from a file.

    The meta device would do that too; what it imports takes a second and 70 MB.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def load_engine(
    model: str = "auto",
    model_dir: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    *,
    prepared: bool = True,
) -> Engine:
    """Load a model directory: `supertonic.safetensors`, `voice_styles/*.json`, maybe `config.json`.

    model: "supertonic-2" is what lies in `model_dir`; "tiny" is the built-in voice; "auto" is the
    first of the two that is there; anything else is a directory of its own.
    precision: of the matrix products; see `resolve_precision` for "auto". `prepared=False` runs
    the model as it is written, slower.
    """
    device = resolve_device(device)
    name, directory = resolve_directory(model, model_dir)
    config = load_config(directory)
    if precision == "auto":
        precision = resolve_precision(config, device) if prepared else "float32"
    check_precision(precision, device)
    if precision != "float32" and not prepared:
        raise ConfigError(f"precision {precision!r} needs the prepared model; unprepared: float32")
    # Meanwhile on another core, if there is one: it reads the same file.
    fingerprint = ThreadPoolExecutor(1).submit(_fingerprint, directory, config, precision)
    with _Unfilled():
        network = Supertonic(config)
    load_weights(network, directory / WEIGHTS)
    duration = config.duration_predictor
    styles = load_styles(
        directory / "voice_styles",
        (config.n_style, config.style_dim),
        (duration.n_style, duration.style_dim),
    )
    if device == "cpu":
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    if prepared:
        network = prepare(network, device, precision)
    is_builtin = directory == BUILTIN
    return Engine(
        network,
        styles,
        name=name,
        description=BUILTIN_DESCRIPTION if is_builtin else f"Supertonic weights in {directory}.",
        is_builtin=is_builtin,
        fingerprint=fingerprint.result(),
        device=device,
        precision=precision,
    )


def resolve_device(device: str) -> str:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if count else "cpu"
    known = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if known is None:
        raise ConfigError(f"device {device!r} is not one of auto, cpu, cuda, cuda:<number>")
    if device != "cpu" and int(known[1] or 0) >= count:
        there = ", ".join(f"cuda:{number}" for number in range(count)) or "none"
        raise ConfigError(f"device {device!r} was asked for; CUDA devices here: {there}")
    return device


def resolve_precision(config: ModelConfig, device: str) -> str:
    """What "auto" means: bfloat16 where that is faster, else float32.

    Faster is where the device multiplies bfloat16 itself and multiplying is what takes the time,
    which is not so in a small model.
    """
    is_faster = has_fast_bfloat16(device) and not is_small(config)
    return "bfloat16" if is_faster else "float32"


def resolve_directory(model: str, model_dir: str | Path | None) -> tuple[str, Path]:
    """The name of the model and the directory that holds it."""
    published = Path(model_dir) if model_dir else None
    if model == "auto":
        has_weights = published is not None and (published / WEIGHTS).exists()
        model = "supertonic-2" if has_weights else "tiny"
    if model == "tiny":
        return "tiny", BUILTIN
    if model == "supertonic-2" and published is not None:
        name, directory = model, published
    else:
        name, directory = Path(model).resolve().name, Path(model)
    if not (directory / WEIGHTS).exists():
        raise WeightsError(
            f"{directory}: no {WEIGHTS} there; `python -m supertonic download` fetches it"
        )
    return name, directory


def load_config(directory: Path) -> ModelConfig:
    path = directory / "config.json"
    config = ModelConfig.load(path) if path.exists() else ModelConfig()
    if config.vocabulary != len(VOCABULARY) + 1:
        raise ConfigError(
            f"{path}: vocabulary: expected {len(VOCABULARY) + 1}, got {config.vocabulary}"
        )
    return config


def _fingerprint(directory: Path, config: ModelConfig, precision: str) -> str:
    """Changes with anything that changes the sound."""
    digest = hashlib.blake2b(repr((config, precision)).encode(), digest_size=6)
    for path in [directory / WEIGHTS, *sorted((directory / "voice_styles").glob("*.json"))]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()
