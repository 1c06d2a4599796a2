"""Model speed without a queue: our PyTorch model beside ONNX Runtime, ``make bench-engine``.

Claim: how long each network and the whole way from ids to samples take, for full-size random
weights, and how that compares with an ONNX Runtime export of the same modules with the same
weights, run in turn with it on the same threads. The sound is checked to be equal first.
Ceiling: the machine's float32 matrix rate; a matrix product of the model's own shape is timed in
the same run, and `floor share` is the share of its rate that the model reaches.

Example: a text of 110 tokens and 100 latent frames, 6.97 s of sound; random weights would choose
their own durations, so the length is forced. With ``--device cuda`` PyTorch runs alone.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import (
    Timings,
    alternate,
    describe,
    json_line,
    machine,
    ratio,
    table,
    table_row,
)
from supertonic.config import ModelConfig
from supertonic.layers import Span
from supertonic.model import Batch, Supertonic

TOKENS, FRAMES = 110, 100
TOLERANCE = 1e-4  # of the largest value
# Of the full-size vocoder and the product it is held against, for one row of 100 frames.
VOCODER_FLOP = 2 * 15_173e6
MATRIX_FLOP = 2 * 600 * 512 * 2048


def random_model(config: ModelConfig) -> Supertonic:
    """The same on every run. No number is zero that would not be after training."""
    torch.manual_seed(1)
    model = Supertonic(config).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and not tensor.any():
            tensor.normal_(std=0.1)
    return model


@dataclass
class Example:
    """One batch of equal rows, as tensors for PyTorch."""

    batch: Batch
    noise: Tensor  # (B, 144, L)
    n_frames: Tensor  # (B,)

    @classmethod
    def make(cls, config: ModelConfig, rows: int, steps: int, device: str) -> "Example":
        torch.manual_seed(2)
        duration = config.duration_predictor
        batch = Batch(
            text_ids=torch.randint(0, config.vocabulary, (rows, TOKENS)).to(device),
            text_lengths=torch.full((rows,), TOKENS, device=device),
            style_ttl=torch.randn(rows, config.n_style, config.style_dim).to(device),
            style_dp=torch.randn(rows, duration.n_style, duration.style_dim).to(device),
            speed=torch.ones(rows, device=device),
            steps=[steps] * rows,
            seeds=[(0, row) for row in range(rows)],
        )
        noise = torch.randn(rows, config.latent_dim, FRAMES).to(device)
        return cls(batch, noise, torch.full((rows,), FRAMES, device=device))


def pytorch_parts(
    model: Supertonic, example: Example, finish: Callable[[], None]
) -> dict[str, Callable[[], Any]]:
    """What is timed, by name. ``finish`` waits until the device is done."""
    batch, n_frames, rows = example.batch, example.n_frames, len(example.n_frames)
    ids, lengths, style_ttl = batch.text_ids, batch.text_lengths, batch.style_ttl
    steps = torch.tensor(batch.steps, dtype=torch.float32, device=ids.device)
    estimator = model.vector_estimator
    span = Span.of(n_frames, FRAMES, torch.float32)
    heard = estimator.listen(model.text_encoder(ids, lengths, style_ttl), lengths, style_ttl)

    def whole() -> Tensor:
        model.durations(batch)
        text_emb = model.text_encoder(ids, lengths, style_ttl)
        # `denoise` works in place, so it gets a copy.
        latent = model.denoise(example.noise.clone(), n_frames, text_emb, batch)
        waveforms: Tensor = model.vocoder(latent)
        return waveforms

    parts: dict[str, Callable[[], Any]] = {
        "duration": lambda: model.duration_predictor(ids, lengths, batch.style_dp),
        "text": lambda: model.text_encoder(ids, lengths, style_ttl),
        "step": lambda: estimator(example.noise, span, heard, 0, steps),
        "vocoder": lambda: model.vocoder(example.noise),
        f"whole, {batch.steps[0]} steps": whole,
    }
    assert all(len(part()) == rows for part in parts.values())

    def finished(part: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            result = part()
            finish()
            return result

        return run

    return {name: finished(part) for name, part in parts.items()}


def onnx_parts(onnx: Any, example: Example) -> dict[str, Callable[[], Any]]:
    """The same names, computed by ONNX Runtime."""
    batch = example.batch
    ids, lengths = batch.text_ids.numpy(), batch.text_lengths.numpy()
    style_ttl, style_dp = batch.style_ttl.numpy(), batch.style_dp.numpy()
    noise, n_frames = example.noise.numpy(), example.n_frames.numpy()
    steps = np.array(batch.steps, dtype=np.float32)
    heard = onnx.listen(onnx.text(ids, lengths, style_ttl), lengths, style_ttl)

    def whole() -> np.ndarray:
        onnx.duration(ids, lengths, style_dp)
        known = onnx.listen(onnx.text(ids, lengths, style_ttl), lengths, style_ttl)
        latent = noise
        for step in range(batch.steps[0]):
            latent = onnx.step(latent, n_frames, lengths, step, steps, known)
        return onnx.vocoder(latent)  # type: ignore[no-any-return]

    return {
        "duration": lambda: onnx.duration(ids, lengths, style_dp),
        "text": lambda: onnx.text(ids, lengths, style_ttl),
        "step": lambda: onnx.step(noise, n_frames, lengths, 0, steps, heard),
        "vocoder": lambda: onnx.vocoder(noise),
        f"whole, {batch.steps[0]} steps": whole,
    }


def largest_difference(
    ours: dict[str, Callable[[], Any]], theirs: dict[str, Callable[[], Any]]
) -> float:
    """Largest difference of any part's output, as a share of the output's largest value."""
    worst = 0.0
    for name, part in ours.items():
        expected, found = part().numpy(), theirs[name]()
        error = float(np.abs(expected - found).max() / np.abs(expected).max())
        if not error <= TOLERANCE:
            raise SystemExit(f"{name}: ONNX Runtime differs by {error:.1e} of the peak; no figures")
        worst = max(worst, error)
    return worst


class Report:
    """Prints the table as it grows and keeps what goes into the JSON line."""

    def __init__(self, audio_s: float, with_onnx: bool) -> None:
        self.audio_s = audio_s
        header = ["threads", "batch", "part", "PyTorch ms (p95)"]
        if with_onnx:
            header += ["ONNX Runtime ms (p95)", "ratio", "ratio of CPU times"]
        print(table([*header, "RTF"], []), flush=True)
        self.cells: dict[str, dict[str, float | int]] = {}
        self.max_err = 0.0

    def add(self, threads: int, batch: int, part: str, timings: dict[str, Timings]) -> None:
        torch_s, onnx_s = timings["pytorch"], timings.get("onnx")
        cell: dict[str, float | int] = {
            "pytorch_ms": torch_s.median * 1000,
            "pytorch_p95_ms": torch_s.p95 * 1000,
            "runs": len(torch_s.wall),
        }
        row: list[object] = [threads, batch, part, _ms(torch_s)]
        if onnx_s is not None:
            cell |= {
                "onnx_ms": onnx_s.median * 1000,
                "onnx_p95_ms": onnx_s.p95 * 1000,
                "ratio": ratio(torch_s.wall, onnx_s.wall),
                "cpu_ratio": ratio(torch_s.cpu, onnx_s.cpu),
            }
            row += [_ms(onnx_s), f"{cell['ratio']:.2f}", f"{cell['cpu_ratio']:.2f}"]
        if part.startswith("whole"):
            audio_s = batch * self.audio_s
            rtfs = [timing.median / audio_s for timing in timings.values()]
            row.append(" / ".join(f"{rtf:.3f}" for rtf in rtfs))
        else:
            row.append("")
        print(table_row(row), flush=True)
        self.cells[f"{threads}t b{batch} {part}"] = cell

    def whole_ratios(self) -> dict[str, float]:
        """Under short names: truth_vs_ort_1t_b1_2s is 1 thread, batch 1, 2 steps."""
        short = {
            name.replace("whole, ", "").replace(" steps", "s").replace(" ", "_"): cell["ratio"]
            for name, cell in self.cells.items()
            if "whole" in name and "ratio" in cell
        }
        return {f"truth_vs_ort_{name}": value for name, value in short.items()}


def _ms(timings: Timings) -> str:
    return f"{timings.median * 1000:.1f} ({timings.p95 * 1000:.1f})"


def measure(
    arguments: argparse.Namespace,
    model: Supertonic,
    onnx: Any,
    report: Report,
    finish: Callable[[], None],
) -> None:
    """Every cell: threads × batch × parts, and the whole for each number of steps."""
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        if onnx is not None:
            onnx.use_threads(threads)
        for rows in arguments.batches:
            # Components do not depend on the number of steps: timed once.
            for number, steps in enumerate(arguments.steps):
                example = Example.make(model.config, rows, steps, arguments.device)
                variants = {"pytorch": pytorch_parts(model, example, finish)}
                if onnx is not None:
                    variants["onnx"] = onnx_parts(onnx, example)
                    error = largest_difference(variants["pytorch"], variants["onnx"])
                    report.max_err = max(report.max_err, error)
                for part in variants["pytorch"]:
                    if number and not part.startswith("whole"):
                        continue
                    runs = {name: parts[part] for name, parts in variants.items()}
                    # Two threads: the other runtime's spin for a moment after their work.
                    settle_s = 0.02 if threads > 1 else 0.0
                    timings = alternate(runs, arguments.repeats, arguments.limit, settle_s)
                    report.add(threads, rows, part, timings)


def floor_share(
    arguments: argparse.Namespace, model: Supertonic, finish: Callable[[], None]
) -> dict[str, float]:
    """How near the vocoder comes to a plain matrix product of its own shape, in turn with it."""
    rows = arguments.batches[0]
    torch.set_num_threads(arguments.threads[0])
    latent = Example.make(model.config, rows, 1, arguments.device).noise
    a = torch.randn(600, 512, device=arguments.device)
    b = torch.randn(512, 2048, device=arguments.device)

    def products() -> None:
        for _ in range(20):
            a @ b
        finish()

    def vocoder() -> None:
        model.vocoder(latent)
        finish()

    timings = alternate({"vocoder": vocoder, "products": products}, 10, arguments.limit)
    shares = ratio(timings["products"].wall, timings["vocoder"].wall)
    return {
        "matmul_gflop_s": 20 * MATRIX_FLOP / timings["products"].median / 1e9,
        "vocoder_floor_share": shares * VOCODER_FLOP * rows / (20 * MATRIX_FLOP),
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 5])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=15, help="most runs of each cell")
    parser.add_argument("--limit", type=float, default=15.0, help="seconds per cell, after 3 runs")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--no-onnx", action="store_true", help="PyTorch alone")
    parser.add_argument("--config", type=Path, help="config.json of a model of other sizes")
    parser.add_argument("--quick", action="store_true", help="batch 1, 2 steps, 3 runs")
    parsed = parser.parse_args(arguments)
    if parsed.quick:
        parsed.batches, parsed.steps, parsed.threads, parsed.repeats = [1], [2], [1], 3
    return parsed


@torch.inference_mode()
def main() -> None:
    arguments = parse()
    with_onnx = arguments.device == "cpu" and not arguments.no_onnx
    packages = ("torch", "onnx", "onnxscript", "onnxruntime") if with_onnx else ("torch",)
    facts = machine(*packages)
    print(describe(facts), flush=True)

    config = ModelConfig.load(arguments.config) if arguments.config else ModelConfig()
    model, onnx = random_model(config), None
    if with_onnx:
        # Imported here: a GPU machine does not need ONNX Runtime.
        from benchmarks.onnx_export import OnnxModel

        print("Exporting five graphs (about a minute)", flush=True)
        onnx = OnnxModel(model, arguments.threads[0])
    model.to(arguments.device).duration_predictor.double()  # as the engine runs it

    report = Report(FRAMES * config.samples_per_frame / config.sample_rate, with_onnx)
    finish = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None
    measure(arguments, model, onnx, report, finish)
    if with_onnx:
        print("ratio: PyTorch ÷ ONNX Runtime, median of neighbouring runs; below 1 we are faster")

    result = {"benchmark": "engine", "device": arguments.device, **facts}
    if config == ModelConfig():
        floor = floor_share(arguments, model, finish)
        rate, share = floor["matmul_gflop_s"], floor["vocoder_floor_share"]
        print(f"Matrix product {rate:.0f} GFLOP/s; the vocoder reaches {share:.0%} of it")
        result |= floor
    result |= report.whole_ratios()
    print(json_line(result | {"max_err": report.max_err, "cells": report.cells}))


if __name__ == "__main__":
    main()
