"""The vocoder, prepared: latent to waveform, whole or in slices."""

from typing import Any

from torch import Tensor, nn

from supertonic.kernels import ConvNeXtBlock, Dense, Form, Past, Window
from supertonic.rows import Rows
from supertonic.vocoder import Vocoder


class PreparedVocoder(nn.Module):
    """Packed latent (N, 144) to packed waveform (3072 · N,)."""

    def __init__(self, vocoder: Vocoder, form: Form) -> None:
        super().__init__()
        decoder: Any = vocoder.decoder
        self.ldim = vocoder.ldim

        # embed(z / scale · std + mean): an edge that repeats a frame repeats it scaled as well.
        conv = decoder.embed.net
        scale = (vocoder.latent_std / vocoder.normalizer.scale).flatten()
        self.embed = window(form, conv, scale, vocoder.latent_mean.flatten())
        self.blocks = [
            ConvNeXtBlock(form, block.dwconv.net, block, is_causal=True)
            for block in decoder.convnext
        ]
        norm = decoder.final_norm.norm
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * scale
        slope = float(decoder.head.act.weight)
        self.layer1 = window(form, decoder.head.layer1.net, scale, shift, slope)
        self.layer2 = Dense(form, decoder.head.layer2.weight[:, :, 0])

    def forward(self, latent: Tensor, rows: Rows, past: Past | None = None) -> Tensor:
        """With `past`, one row's next frames: it remembers what the convolutions look back at."""
        # Channel 6c + r of frame l is channel c of base frame 6l + r.
        base_frames = latent.view(rows.n, self.ldim, -1).mT
        rows = rows.times(base_frames.shape[1])
        x = self.embed(base_frames.reshape(rows.n, self.ldim), rows, past)
        for block in self.blocks:
            x = block(x, rows, past)
        return self.layer2(self.layer1(x, rows, past)).flatten()


def window(
    form: Form, conv: nn.Conv1d, scale: Tensor, shift: Tensor, slope: float | None = None
) -> Window:
    """conv(x · scale + shift), per input channel; with a slope, a PReLU behind it."""
    assert conv.bias is not None
    weight = (conv.weight * scale[:, None]).transpose(1, 2).flatten(1)  # (outputs, k · inputs)
    bias = conv.bias + conv.weight.sum(dim=2) @ shift
    activation = "none" if slope is None else "leaky_relu"
    return Window(conv.kernel_size[0], Dense(form, weight, bias, activation, slope or 0.0))
