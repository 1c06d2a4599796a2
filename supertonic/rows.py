"""Packed batches: where each row begins and ends.

The rows stand one behind the other in one (frames, channels) tensor, with nothing between them.
Nothing is ever computed for padding, and whatever does not look sideways in time needs not know
that there are rows at all. `Rows` knows, for the two things that do look sideways: depthwise
convolutions and attention.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor


class Rows:
    """Where each row of a packed (N, channels) tensor begins and ends."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        self.device = device
        self.n = sum(self.lengths)  # positions in all
        self._around: dict[tuple[int, int], tuple[Tensor, Tensor | None]] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def times(self, factor: int) -> "Rows":
        return Rows([length * factor for length in self.lengths], self.device)

    def around(self, left: int, right: int) -> tuple[Tensor, Tensor | None]:
        """How to give every row `left` and `right` frames more, repeating its first and last.

        Index of the frames to take; and, of what a convolution then makes of all of them, the
        frames to keep (None = all): between two rows it also looks at a bit of both.
        """
        if (left, right) not in self._around:
            take, keep, start = [], [], 0
            for row, length in enumerate(self.lengths):
                take.append(torch.arange(-left, length + right).clamp(0, length - 1) + start)
                keep.append(torch.arange(length) + start + row * (left + right))
                start += length
            kept = send(torch.cat(keep), self.device) if len(self) > 1 else None
            self._around[left, right] = send(torch.cat(take), self.device), kept
        return self._around[left, right]

    @cached_property
    def starts(self) -> Tensor:
        """(B,) where each row begins."""
        lengths = torch.tensor(self.lengths)
        return send(lengths.cumsum(0) - lengths, self.device)

    @cached_property
    def row_of(self) -> Tensor:
        """(N,) which row each frame belongs to."""
        lengths = torch.tensor(self.lengths)
        return send(torch.arange(len(self)).repeat_interleave(lengths), self.device)

    def spread(self, per_row: Tensor) -> Tensor:
        """(B, C) to (N, C); one row stays (1, C), which is the same to a sum or product."""
        return per_row if len(self) == 1 else per_row.index_select(0, self.row_of)

    def per_row(self, packed: Tensor) -> Tensor:
        """(B · n, C) to (B, n, C), where every row has as many."""
        return packed.view(len(self), -1, packed.shape[1])

    @cached_property
    def turn(self) -> Tensor:
        """(N, 1) float32: how far through its own row each frame is, in [0, 1)."""
        each = [torch.arange(n, dtype=torch.float32) / n for n in self.lengths]
        return send(torch.cat(each)[:, None], self.device)

    @cached_property
    def is_real(self) -> Tensor:  # (B, longest)
        lengths = torch.tensor(self.lengths)
        return send(torch.arange(self.longest) < lengths[:, None], self.device)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def is_even(self) -> bool:
        return len(set(self.lengths)) == 1

    @cached_property
    def keys(self) -> Tensor | None:
        """(B, 1, 1, longest) bool: the keys that attention may look at; None when all."""
        return None if self.is_even else self.is_real[:, None, None]

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """Index of packed frames for padded places, and of padded places for packed frames."""
        longest, take, places, start = self.longest, [], [], 0
        for row, length in enumerate(self.lengths):
            take.append(torch.arange(longest).clamp(max=length - 1) + start)
            places.append(torch.arange(length) + row * longest)
            start += length
        return send(torch.cat(take), self.device), send(torch.cat(places), self.device)

    def split_heads(self, x: Tensor, heads: int) -> Tensor:
        """(N, heads · d) to (B, heads, longest, d). Short rows repeat their last frame."""
        if not self.is_even:
            x = x.index_select(0, self._places[0])
        return x.view(len(self), -1, heads, x.shape[1] // heads).transpose(1, 2)

    def merge_heads(self, x: Tensor) -> Tensor:
        """(B, heads, longest, d) back to (N, heads · d)."""
        merged = x.transpose(1, 2).flatten(2).flatten(0, 1)
        return merged if self.is_even else merged.index_select(0, self._places[1])


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for the work that it still has before it."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
