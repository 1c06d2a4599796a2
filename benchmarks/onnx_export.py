"""The same modules with the same weights as ONNX graphs, run by ONNX Runtime.

Five graphs with free batch and lengths, exported as a user would export them today: torch.onnx
with its default optimisation, then ONNX Runtime's own. What the model computes once per batch
(``listen``) is a graph of its own, so that its steps are as cheap as PyTorch's.
"""

import copy
import io
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from supertonic.layers import Span
from supertonic.model import Supertonic
from supertonic.vector_estimator import Heard, VectorEstimator

# What free sizes are tried with while tracing. All different, and none of them 1, or the exporter
# would take one for the other, or for a constant.
B, T, L = 2, 31, 37
FREE = torch.export.Dim.DYNAMIC

Array = np.ndarray


class _Listen(nn.Module):
    """Keys and values of all groups, stacked."""

    def __init__(self, estimator: VectorEstimator) -> None:
        super().__init__()
        self.estimator = estimator

    def forward(
        self, text_emb: Tensor, text_lengths: Tensor, style_ttl: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        heard = self.estimator.listen(text_emb, text_lengths, style_ttl)
        return (
            torch.stack([known.text_k for known in heard]),
            torch.stack([known.text_v for known in heard]),
            torch.stack([known.style_k for known in heard]),
            torch.stack([known.style_v for known in heard]),
        )


class _Step(nn.Module):
    def __init__(self, estimator: VectorEstimator) -> None:
        super().__init__()
        self.estimator = estimator

    def forward(
        self,
        latent: Tensor,
        n_frames: Tensor,
        text_lengths: Tensor,
        step: Tensor,
        steps: Tensor,
        text_k: Tensor,
        text_v: Tensor,
        style_k: Tensor,
        style_v: Tensor,
    ) -> Tensor:
        text_keys = Span.of(text_lengths, text_k.shape[3], latent.dtype).keys
        stacked = zip(text_k, text_v, style_k, style_v, strict=True)
        heard = [Heard(*known, text_keys) for known in stacked]
        span = Span.of(n_frames, latent.shape[2], latent.dtype)
        stepped: Tensor = self.estimator(latent, span, heard, step, steps)
        return stepped


class OnnxModel:
    """ONNX Runtime on the CPU; takes and gives NumPy arrays."""

    def __init__(self, model: Supertonic, threads: int) -> None:
        self._graphs = _export(model)
        self.use_threads(threads)

    def use_threads(self, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._sessions = {
            name: onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])
            for name, graph in self._graphs.items()
        }

    def duration(self, text_ids: Array, text_lengths: Array, style_dp: Array) -> Array:
        return self._run("duration", text_ids, text_lengths, style_dp)[0]

    def text(self, text_ids: Array, text_lengths: Array, style_ttl: Array) -> Array:
        return self._run("text", text_ids, text_lengths, style_ttl)[0]

    def listen(self, text_emb: Array, text_lengths: Array, style_ttl: Array) -> list[Array]:
        return self._run("listen", text_emb, text_lengths, style_ttl)

    def step(
        self,
        latent: Array,
        n_frames: Array,
        text_lengths: Array,
        step: int,
        steps: Array,
        heard: Sequence[Array],
    ) -> Array:
        now = np.array(step, dtype=np.float32)
        return self._run("step", latent, n_frames, text_lengths, now, steps, *heard)[0]

    def vocoder(self, latent: Array) -> Array:
        return self._run("vocoder", latent)[0]

    def _run(self, name: str, *values: Array) -> list[Array]:
        session = self._sessions[name]
        feed = {
            put.name: np.asarray(v) for put, v in zip(session.get_inputs(), values, strict=True)
        }
        outputs: list[Array] = session.run(None, feed)
        return outputs


def _export(model: Supertonic) -> dict[str, bytes]:
    config = model.config
    duration = config.duration_predictor
    ids = torch.randint(0, config.vocabulary, (B, T))
    lengths = torch.tensor([T, T - 3])
    style_ttl = torch.randn(B, config.n_style, config.style_dim)
    style_dp = torch.randn(B, duration.n_style, duration.style_dim)
    text_emb = torch.randn(B, config.text_encoder.width, T)
    latent = torch.randn(B, config.latent_dim, L)
    n_frames, steps = torch.tensor([L, L - 5]), torch.full((B,), 2.0)
    listen, step = _Listen(model.vector_estimator), _Step(model.vector_estimator)
    heard = listen(text_emb, lengths, style_ttl)

    row, text, frames = {0: FREE}, {0: FREE, 1: FREE}, {0: FREE, 2: FREE}
    known: list[dict[int, Any]] = [{1: FREE, 3: FREE}, {1: FREE, 3: FREE}, {}, {1: FREE}]
    graphs = {
        # As ONNX Runtime's users have it; our own runs in double precision (supertonic/engine.py).
        "duration": (
            copy.deepcopy(model.duration_predictor).float(),
            (ids, lengths, style_dp),
            (text, row, row),
        ),
        "text": (model.text_encoder, (ids, lengths, style_ttl), (text, row, row)),
        "listen": (listen, (text_emb, lengths, style_ttl), (frames, row, row)),
        "step": (
            step,
            (latent, n_frames, lengths, torch.tensor(0.0), steps, *heard),
            (frames, row, row, {}, row, *known),
        ),
        "vocoder": (model.vocoder, (latent,), (frames,)),
    }
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    return {name: _graph(*graph) for name, graph in graphs.items()}


def _graph(
    module: nn.Module, inputs: tuple[Tensor, ...], free: tuple[dict[int, Any], ...]
) -> bytes:
    with torch.no_grad():
        # Strict, because the looser way takes `len(tensor)` for a constant.
        traced = torch.export.export(module.eval(), inputs, dynamic_shapes=free, strict=True)
        program = torch.onnx.export(traced, dynamo=True, verbose=False)
    file = io.BytesIO()
    assert program is not None
    onnx.save(program.model_proto, file)
    return file.getvalue()
