"""Latent to waveform: causal convolutions at 86 frames a second, then 512 samples per frame.

Every convolution looks only to the left, so padding on the right cannot reach real samples and
no masks are needed here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supertonic.config import ModelConfig
from supertonic.layers import ChannelNorm

KERNEL = 7
HEAD_KERNEL = 3


class CausalConv(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, kernel: int, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.padding = (kernel - 1) * dilation
        self.net = nn.Conv1d(inputs, outputs, kernel, dilation=dilation, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.pad(x, (self.padding, 0), mode="replicate"))


class CausalConvNeXtBlock(nn.Module):
    def __init__(self, width: int, hidden: int, dilation: int) -> None:
        super().__init__()
        self.dwconv = CausalConv(width, width, KERNEL, dilation, groups=width)
        self.norm = ChannelNorm(width)
        self.pwconv1 = nn.Conv1d(width, hidden, 1)
        self.pwconv2 = nn.Conv1d(hidden, width, 1)
        self.gamma = nn.Parameter(torch.ones(1, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.pwconv2(F.gelu(self.pwconv1(self.norm(self.dwconv(x)))))
        return x + self.gamma * y


class BatchNorm(nn.Module):
    """With running statistics, under the published name `final_norm.norm`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Head(nn.Module):
    def __init__(self, width: int, hidden: int, samples: int) -> None:
        super().__init__()
        self.layer1 = CausalConv(width, hidden, HEAD_KERNEL)
        self.act = nn.PReLU()
        self.layer2 = nn.Conv1d(hidden, samples, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(self.act(self.layer1(x)))


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        sizes = config.vocoder
        self.embed = CausalConv(config.ldim, sizes.width, KERNEL)
        self.convnext = nn.ModuleList(
            CausalConvNeXtBlock(sizes.width, sizes.convnext_hidden, d) for d in sizes.dilations
        )
        self.final_norm = BatchNorm(sizes.width)
        self.head = Head(sizes.width, sizes.head_hidden, config.base_chunk_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 24, F) base frames to (B, 512, F): the samples of each frame, top to bottom."""
        x = self.embed(x)
        for block in self.convnext:
            x = block(x)
        return self.head(self.final_norm(x))


class Normalizer(nn.Module):
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.25))

    def forward(self, latent: Tensor) -> Tensor:
        return latent / self.scale


class Vocoder(nn.Module):
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ldim = config.ldim
        self.normalizer = Normalizer()
        self.register_buffer("latent_mean", torch.zeros(1, config.ldim, 1))
        self.register_buffer("latent_std", torch.ones(1, config.ldim, 1))
        self.decoder = Decoder(config)

    def forward(
        self,
        latent: Tensor,  # (B, 144, L)
    ) -> Tensor:  # (B, 3072 · L)
        # Channel 6c + r of frame l is channel c of base frame 6l + r.
        unpacked = self.normalizer(latent).unflatten(1, (self.ldim, -1)).mT.flatten(2)
        frames = self.decoder(unpacked * self.latent_std + self.latent_mean)
        return frames.mT.flatten(1)
