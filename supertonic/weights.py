"""Strict loading of a `.safetensors` file: every name, shape and type must be the model's own.

The published file repeats three shared tensors under several names; a file may also leave the
copies out, but it may not contradict itself.
"""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from supertonic.errors import WeightsError
from supertonic.model import Supertonic

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32)


def load_weights(model: Supertonic, path: str | Path) -> None:
    """Give `model`, best built under `torch.device("meta")`, the weights stored in `path`.

    float32 tensors stay mapped to the file, so that loading copies nothing and several workers on
    one machine share the memory; 16-bit ones are widened to float32.

    WeightsError names the first tensor that is missing, unknown, misshapen or contradictory.
    """
    stored = _read(path)
    _unite_shared(model, stored, path)
    expected = model.state_dict()
    for name in expected:
        if name.endswith("num_batches_tracked"):  # counts training batches; nothing reads it
            stored.setdefault(name, torch.tensor(0))
        if name not in stored:
            raise WeightsError(f"{path}: tensor {name} is missing; is this a Supertonic 2 file?")
    for name, tensor in stored.items():
        if name not in expected:
            raise WeightsError(f"{path}: unknown tensor {name}; is this a Supertonic 2 file?")
        wanted, found = tuple(expected[name].shape), tuple(tensor.shape)
        if wanted != found:
            raise WeightsError(f"{path}: {name}: expected shape {wanted}, found {found}")
        stored[name] = _widen(name, tensor, path)
    model.load_state_dict(stored, strict=True, assign=True)


def save_weights(model: Supertonic, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `model` under all published names, floats stored as `dtype`."""
    tensors = {
        # Cloned, because the format refuses two names for one piece of memory.
        name: tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
        for name, tensor in model.state_dict().items()
    }
    # Written aside and renamed: a worker may have the old file mapped into its memory.
    aside = f"{path}.part"
    save_file(tensors, aside, metadata={"format": "pt"})
    os.chmod(aside, 0o644)  # save_file lets only its owner read it
    os.replace(aside, path)


def _read(path: str | Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file") from error
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path}: not a complete safetensors file: {reason}") from error


def _unite_shared(model: Supertonic, stored: dict[str, Tensor], path: str | Path) -> None:
    """Fill in the left-out names of shared tensors; refuse copies that differ."""
    for names in model.shared_names:
        present = [name for name in names if name in stored]
        for name in present[1:]:
            if not torch.equal(stored[present[0]], stored[name]):
                raise WeightsError(f"{path}: {name} must equal {present[0]}, but differs")
        if present:
            stored.update(dict.fromkeys(names, stored[present[0]]))


def _widen(name: str, tensor: Tensor, path: str | Path) -> Tensor:
    allowed: tuple[torch.dtype, ...] = FLOATS
    if name.endswith("num_batches_tracked"):
        allowed = INTEGERS
    elif name.endswith("increments"):  # 0 … 999, stored as numbers of either kind
        allowed = FLOATS + INTEGERS
    if tensor.dtype not in allowed:
        kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        found = str(tensor.dtype).removeprefix("torch.")
        raise WeightsError(f"{path}: {name}: expected {kinds}, found {found}")
    return tensor.long() if allowed is INTEGERS else tensor.float()
