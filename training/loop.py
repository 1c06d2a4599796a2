"""What the training stages share: start values, precision, moving averages, resumable state."""

import math
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from supertonic.model import Supertonic
from training.plan import device


def autocast() -> AbstractContextManager[Any]:
    """Matrix products in bfloat16; with AMX or a GPU they then cost next to nothing."""
    return torch.autocast(device().type, torch.bfloat16)


@torch.no_grad()
def initialise(model: Supertonic) -> None:
    """PyTorch's own start values, except where the modules wait for a file."""
    for name, tensor in model.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if last == "gamma":
            nn.init.constant_(tensor, 0.25)
        elif last in ("key_emb", "sentence_token"):
            nn.init.normal_(tensor)
        elif last in ("emb_rel_k", "emb_rel_v"):
            nn.init.normal_(tensor, std=0.05)
    prompted = model.text_encoder.speech_prompted_text_encoder
    for attention in (prompted.attention1, prompted.attention2):
        attention.tanh.Tanh_output_0.normal_().tanh_()  # constants: random keys serve


class Average:
    """Exponential moving average of parameters, for evaluation and export."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.steps = module, decay, 0
        self.shadow = [p.detach().clone() for p in module.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.module.parameters()], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the live values."""
        for p, average in zip(self.module.parameters(), self.shadow, strict=True):
            live = p.detach().clone()
            p.copy_(average)
            average.copy_(live)

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for mine, theirs in zip(self.shadow, state["shadow"], strict=True):
            mine.copy_(theirs)


def save_state(path: Path, step: int, **parts: Any) -> None:
    content = {name: part.state_dict() for name, part in parts.items()}
    aside = path.with_suffix(".part")
    torch.save({"step": step, **content}, aside)
    os.replace(aside, path)


def load_state(path: Path, **parts: Any) -> int:
    """The step to go on with; 0 where nothing was saved."""
    if not path.exists():
        return 0
    content = torch.load(path, map_location=device(), weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(content[name])
    return int(content["step"])


def trapezoid(step: int, warm_up: int, decay_from: int, end: int) -> float:
    """Learning rate factor: up, level, and down to a twentieth."""
    if step < warm_up:
        return (step + 1) / warm_up
    if step < decay_from:
        return 1.0
    left = max(0.0, (end - step) / max(1, end - decay_from))
    return 0.05 + 0.95 * (1 - math.sqrt(1 - left))


def unit(tokens: Tensor) -> Tensor:
    """Style tokens have unit length, as the loader demands."""
    return nn.functional.normalize(tokens, dim=-1)
