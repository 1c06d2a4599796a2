"""Blocks that the networks share: spans of real positions, ConvNeXt, and the attentions.

Tensors are (batch, channels, time). A batch holds rows of different length, padded on the right;
`Span` knows where each row really ends, and every block that looks sideways in time asks it. That
is what makes a row's result independent of its neighbours and of the padding.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW = 4  # relative positions reach four characters to either side
KERNEL = 5  # of the symmetric ConvNeXt blocks


@dataclass(frozen=True)
class Span:
    """Which positions of a padded batch are real."""

    lengths: Tensor  # (B,) int64
    mask: Tensor  # (B, 1, T), 1 where real, 0 where padding

    @classmethod
    def of(cls, lengths: Tensor, n_positions: int, dtype: torch.dtype) -> "Span":
        positions = torch.arange(n_positions, device=lengths.device)
        return cls(lengths, (positions < lengths[:, None])[:, None].to(dtype))

    @property
    def keys(self) -> Tensor:
        """(B, 1, 1, T) bool: the keys that attention may look at."""
        return self.mask[:, None] > 0

    def first(self, n_rows: int) -> "Span":
        return Span(self.lengths[:n_rows], self.mask[:n_rows])

    def pad_edges(self, x: Tensor, padding: int) -> Tensor:
        """Repeat each row's own first and last real frame: (B, C, T) to (B, C, T + 2 padding).

        Repeating the last column of the padded tensor instead (as the official graphs do) would
        show a short row zeros behind its end where, alone, it sees its last frame.
        """
        positions = torch.arange(-padding, x.shape[2] + padding, device=x.device)
        index = torch.minimum(positions.clamp(min=0), self.lengths[:, None] - 1)
        return x.gather(2, index[:, None].expand(-1, x.shape[1], -1))


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each time position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class Linear(nn.Module):
    """A linear layer under the published name `….linear`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Projection(nn.Module):
    """A pointwise convolution without bias, under the published name `….net`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Conv1d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TextEmbedder(nn.Module):
    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.char_embedder = nn.Embedding(vocabulary, width)

    def forward(self, text_ids: Tensor) -> Tensor:
        """(B, T) to (B, width, T)."""
        return self.char_embedder(text_ids).transpose(1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int, hidden: int, dilation: int) -> None:
        super().__init__()
        self.padding = dilation * (KERNEL - 1) // 2
        self.dwconv = nn.Conv1d(width, width, KERNEL, dilation=dilation, groups=width)
        self.norm = ChannelNorm(width)
        self.pwconv1 = nn.Conv1d(width, hidden, 1)
        self.pwconv2 = nn.Conv1d(hidden, width, 1)
        self.gamma = nn.Parameter(torch.ones(1, width, 1))

    def forward(self, x: Tensor, span: Span) -> Tensor:
        residual = x * span.mask
        y = self.dwconv(span.pad_edges(residual, self.padding)) * span.mask
        y = self.pwconv2(F.gelu(self.pwconv1(self.norm(y))))
        return (residual + self.gamma * y) * span.mask


class ConvNeXt(nn.Module):
    """A stack of blocks, one per dilation."""

    def __init__(self, width: int, hidden: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convnext = nn.ModuleList(ConvNeXtBlock(width, hidden, d) for d in dilations)

    def forward(self, x: Tensor, span: Span) -> Tensor:
        for block in self.convnext:
            x = block(x, span)
        return x


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, heads · d) to (B, heads, T, d); each head owns neighbouring channels."""
    return x.reshape(len(x), x.shape[1], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, T, d) back to (B, T, heads · d)."""
    return x.transpose(1, 2).flatten(2)


class RelativeSelfAttention(nn.Module):
    """Self-attention with one learned vector per distance up to `WINDOW`, for keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.conv_q = nn.Conv1d(width, width, 1)
        self.conv_k = nn.Conv1d(width, width, 1)
        self.conv_v = nn.Conv1d(width, width, 1)
        self.conv_o = nn.Conv1d(width, width, 1)
        self.emb_rel_k = nn.Parameter(torch.zeros(1, 2 * WINDOW + 1, width // heads))
        self.emb_rel_v = nn.Parameter(torch.zeros(1, 2 * WINDOW + 1, width // heads))

    def forward(self, x: Tensor, span: Span) -> Tensor:
        q, k, v = (
            split_heads(conv(x).transpose(1, 2), self.heads)
            for conv in (self.conv_q, self.conv_k, self.conv_v)
        )  # (B, heads, T, d)
        q = q / math.sqrt(q.shape[-1])
        row = torch.arange(x.shape[2], device=x.device)[:, None]

        # Scores: content, plus for near keys the learned vector of their distance (zero beyond).
        distance = row.T - row + WINDOW  # (T, T): 0 … 2·WINDOW inside the window
        near = (distance >= 0) & (distance <= 2 * WINDOW)
        by_distance = q @ self.emb_rel_k[0].T  # (B, heads, T, 9)
        index = distance.clamp(0, 2 * WINDOW).expand(*q.shape[:2], -1, -1)
        scores = q @ k.transpose(2, 3) + by_distance.gather(3, index) * near
        weights = scores.masked_fill(~span.keys, -torch.inf).softmax(dim=3)

        # Values: the same, read back along the nine diagonals around the main one.
        diagonals = row + torch.arange(2 * WINDOW + 1, device=x.device)
        near_weights = F.pad(weights, (WINDOW, WINDOW)).gather(
            3, diagonals.expand(*q.shape[:2], -1, -1)
        )
        return self.conv_o(merge_heads(weights @ v + near_weights @ self.emb_rel_v[0]).mT)


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv1d(width, hidden, 1)
        self.conv_2 = nn.Conv1d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_2(F.relu(self.conv_1(x)))


class AttentionEncoder(nn.Module):
    """Post-norm transformer layers; padding is never a key and comes out as zero."""

    def __init__(self, width: int, hidden: int, heads: int, layers: int) -> None:
        super().__init__()
        self.attn_layers = nn.ModuleList(RelativeSelfAttention(width, heads) for _ in range(layers))
        self.norm_layers_1 = nn.ModuleList(ChannelNorm(width) for _ in range(layers))
        self.ffn_layers = nn.ModuleList(FeedForward(width, hidden) for _ in range(layers))
        self.norm_layers_2 = nn.ModuleList(ChannelNorm(width) for _ in range(layers))

    def forward(self, x: Tensor, span: Span) -> Tensor:
        for attention, norm_1, ffn, norm_2 in zip(
            self.attn_layers, self.norm_layers_1, self.ffn_layers, self.norm_layers_2, strict=True
        ):
            x = norm_1(x + attention(x, span))
            x = norm_2(x + ffn(x))
        return x * span.mask
