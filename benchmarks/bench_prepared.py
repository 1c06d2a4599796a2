"""The prepared model beside the truth it was made from and beside ONNX Runtime.

Claim: on one thread, batch 1, the prepared float32 model needs at most 0.9 of ONNX Runtime's time
for the same weights, and bfloat16 at most 0.6 where the processor multiplies bfloat16; on two
threads, 16 utterances of mixed length come out at least 1.3 and 1.8 times as fast.
Ceiling: the processor's matrix rate. A oneDNN product of the model's own shape is timed in turn
with the model; `floor share` is the time the model's multiplications would take at that rate, as
a share of what it does take.

All variants run in turn, A B C A B C, so that a slow minute hits all of them. The sound is
compared with the truth's first. The example is that of `bench_engine`: 110 tokens, 100 frames.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench_engine import FRAMES, TOKENS, Example, onnx_parts, pytorch_parts, random_model
from benchmarks.measure import Timings, alternate, describe, json_line, machine, ratio, table
from supertonic.config import ModelConfig
from supertonic.engine import plan_passes, size_per_pass
from supertonic.kernels import Dense, Form, Rows
from supertonic.prepared import Prepared, has_fast_bfloat16, prepare

CPU = torch.device("cpu")
FLOAT32_BOUND, BFLOAT16_BOUND = 1e-4, 2e-2  # of the peak, after 5 steps
# Multiply-accumulates of the example in full size; the estimator's with keys and values at hand.
DURATION_MAC, TEXT_MAC, STEP_MAC, VOCODER_MAC = 36e6, 761e6, 3_200e6, 15_173e6
MATRIX_FLOP = 2 * 600 * 512 * 2048
# Frames of the mixed utterances: one to ten seconds, in no order.
MIXED = (61, 144, 23, 99, 14, 122, 40, 84, 31, 137, 53, 107, 18, 130, 70, 115)

Speech = tuple[Tensor, Tensor]  # text ids (T,), noise (144, L)
Parts = dict[str, Callable[[], Any]]


def speak(model: Prepared, speeches: Sequence[Speech], style_ttl: Tensor, steps: int) -> Tensor:
    """Packed waveform, by the model's own parts: random weights would choose other lengths."""
    frames = Rows([noise.shape[1] for _, noise in speeches], CPU)
    characters = Rows([len(ids) for ids, _ in speeches], CPU)
    style_ttl = style_ttl.repeat(len(speeches), 1)
    noise = torch.cat([noise.T for _, noise in speeches])
    text_emb = model.text_encoder(torch.cat([ids for ids, _ in speeches]), characters, style_ttl)
    all_steps = [steps] * len(speeches)
    latent = model.denoise(noise, frames, text_emb, characters, style_ttl, all_steps)
    waveform: Tensor = model.vocoder(latent, frames)
    return waveform


def prepared_parts(model: Prepared, example: Example) -> Parts:
    batch, steps = example.batch, example.batch.steps[0]
    ids, style_ttl = batch.text_ids[0], batch.style_ttl[0]
    noise = example.noise[0]
    frames, characters = Rows([FRAMES], CPU), Rows([TOKENS], CPU)
    text_emb = model.text_encoder(ids, characters, style_ttl)
    heard = model.vector_estimator.listen(text_emb, characters, style_ttl, frames)

    def whole() -> Tensor:
        model.durations(batch)
        return speak(model, [(ids, noise)], style_ttl, steps)

    latent = noise.T.contiguous()
    return {
        "duration": lambda: model.durations(batch),
        "text": lambda: model.text_encoder(ids, characters, style_ttl),
        "step": lambda: model.vector_estimator(frames, latent, heard, 0, [2]),
        "vocoder": lambda: model.vocoder(latent, frames),
        f"whole, {steps} steps": whole,
    }


def difference(found: Any, expected: Any) -> float:
    """Largest difference, as a share of the peak."""
    a, b = np.asarray(found).ravel(), np.asarray(expected).ravel()
    return float(np.abs(a - b).max() / np.abs(b).max())


class OneThread:
    """Batch 1 on one thread: every part, and the whole at each number of steps."""

    def __init__(self, arguments: argparse.Namespace, models: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self.arguments, self.models = arguments, models
        self.cells: dict[str, dict[str, float]] = {}
        self.errors = dict.fromkeys(["float32", "bfloat16", "onnx"], 0.0)

    def run(self) -> None:
        for number, steps in enumerate((5, 2)):
            variants = self._variants(steps)
            whole = f"whole, {steps} steps"
            for name in self.errors:
                error = difference(variants[name][whole](), variants["truth"][whole]())
                self.errors[name] = max(self.errors[name], error)
            for part in variants["truth"]:
                if number == 0 or part == whole:
                    self._measure(part, {name: parts[part] for name, parts in variants.items()})

    def _variants(self, steps: int) -> dict[str, Parts]:
        truth = self.models["truth"]
        example = Example.make(truth.config, 1, steps, "cpu")
        return {
            "truth": pytorch_parts(truth, example, lambda: None),
            "float32": prepared_parts(self.models["float32"], example),
            "bfloat16": prepared_parts(self.models["bfloat16"], example),
            "onnx": onnx_parts(self.models["onnx"], example),
        }

    def _measure(self, part: str, runs: Parts) -> None:
        timings = alternate(runs, self.arguments.repeats, self.arguments.limit)
        cell = {f"{name}_ms": timing.median * 1000 for name, timing in timings.items()}
        for name in ("truth", "float32", "bfloat16"):
            cell[f"{name}_ratio"] = ratio(timings[name].wall, timings["onnx"].wall)
            cell[f"{name}_cpu_ratio"] = ratio(timings[name].cpu, timings["onnx"].cpu)
        self.cells[part] = cell

    def table(self) -> str:
        names = ("truth", "float32", "bfloat16", "onnx")
        rows = [
            [part, *(f"{cell[f'{name}_ms']:.1f}" for name in names)]
            + [f"{cell[f'{name}_ratio']:.2f}" for name in names[:3]]
            for part, cell in self.cells.items()
        ]
        header = [*(f"{name} ms" for name in names), *(f"{name} ÷ onnx" for name in names[:3])]
        return table(["one thread, batch 1", *header], rows)


def floor(arguments: argparse.Namespace, model: Prepared) -> dict[str, float]:
    """The matrix rate, and the share of it that 2 steps reach, measured in turn."""
    torch.set_num_threads(1)
    parts = prepared_parts(model, Example.make(model.config, 1, 2, "cpu"))
    product, x = Dense(Form(CPU, torch.float32), torch.randn(2048, 512)), torch.randn(600, 512)

    def products() -> None:
        for _ in range(10):
            product(x)

    runs: Parts = {"products": products, "vocoder": parts["vocoder"], "step": parts["step"]}
    runs["whole"] = parts["whole, 2 steps"]
    timings = alternate(runs, arguments.repeats, arguments.limit)

    def share(part: str, macs: float) -> float:
        per_flop = ratio(timings["products"].wall, timings[part].wall) / (10 * MATRIX_FLOP)
        return per_flop * 2 * macs

    whole = DURATION_MAC + TEXT_MAC + 2 * STEP_MAC + VOCODER_MAC
    return {
        "matmul_gflop_s": 10 * MATRIX_FLOP / timings["products"].median / 1e9,
        "floor_share_fp32": share("whole", whole),
        "floor_share_fp32_step": share("step", STEP_MAC),
        "floor_share_fp32_vocoder": share("vocoder", VOCODER_MAC),
    }


class TwoThreads:
    """Sixteen utterances of mixed length at 2 steps, as fast as each runtime can."""

    def __init__(self, arguments: argparse.Namespace, models: dict[str, Any]) -> None:
        config: ModelConfig = models["truth"].config
        torch.manual_seed(3)
        self.arguments, self.models, self.threads = arguments, models, 2
        self.style_ttl = torch.randn(config.n_style, config.style_dim)
        self.speeches = [
            (
                torch.randint(0, config.vocabulary, (round(n * TOKENS / FRAMES),)),
                torch.randn(config.latent_dim, n),
            )
            for n in MIXED
        ]
        self.audio_s = sum(MIXED) * config.samples_per_frame / config.sample_rate

    def run(self) -> dict[str, float]:
        """Throughput ratios to the better of ONNX Runtime's batch 1 and 16 on two threads, and to
        two sessions of one thread each, which no option of ONNX Runtime gives but our way does.
        """
        runs: Parts = {}
        with ThreadPoolExecutor(
            self.threads, initializer=lambda: torch.set_num_threads(1)
        ) as self.pool:
            for name in ("float32", "bfloat16"):
                runs[name] = lambda model=self.models[name]: self._one_per_core(model)
            # Sessions are not retuned while they run: one for each way.
            runs["onnx, batch 1"] = lambda: self._onnx_rows(self.models["onnx two"], map)
            runs["onnx, batch 16"] = lambda: self._onnx_padded(self.models["onnx two"])
            runs["onnx, one per core"] = lambda: self._onnx_rows(self.models["onnx"], self.pool.map)
            # ONNX Runtime's threads spin for a moment after their work.
            repeats = max(3, self.arguments.repeats // 2)
            timings = alternate(runs, repeats, 4 * self.arguments.limit, settle_s=0.05)
        best = min("onnx, batch 1", "onnx, batch 16", key=lambda name: timings[name].median)
        self._print(timings, best)
        result = {"fp32_2t_mixed_audio_s_per_s": self.audio_s / timings["float32"].median}
        for short, name in (("fp32", "float32"), ("bf16", "bfloat16")):
            own = timings[name].wall
            result[f"{short}_2t_mixed_vs_ort"] = ratio(timings[best].wall, own)
            per_core = timings["onnx, one per core"].wall
            result[f"{short}_2t_mixed_vs_ort_per_core"] = ratio(per_core, own)
        return result

    def _print(self, timings: dict[str, Timings], best: str) -> None:
        rows = [
            [name, f"{timing.median:.2f}", f"{self.audio_s / timing.median:.1f}"]
            for name, timing in timings.items()
        ]
        print(table(["two threads, 16 mixed", "seconds", "audio-s/s"], rows))
        print(f"the better of the two that share a pass: {best}", flush=True)

    def _one_per_core(self, model: Prepared) -> None:
        """As the engine does on a CPU: small passes, the longest first."""
        sizes = [len(ids) for ids, _ in self.speeches]
        passes = plan_passes(sizes, size_per_pass(model.config, "cpu"))[::-1]
        list(self.pool.map(lambda rows: self._speak(model, rows), passes))

    @torch.inference_mode()
    def _speak(self, model: Prepared, rows: list[int]) -> None:
        speak(model, [self.speeches[row] for row in rows], self.style_ttl, 2)

    def _onnx_rows(self, onnx: Any, run_all: Callable[..., Any]) -> None:
        def run(speech: Speech) -> None:
            ids, noise = speech
            self._onnx(onnx, ids[None], [len(ids)], noise[None], [noise.shape[1]])

        list(run_all(run, sorted(self.speeches, key=lambda speech: -len(speech[0]))))

    def _onnx_padded(self, onnx: Any) -> None:
        ids = torch.nn.utils.rnn.pad_sequence([ids for ids, _ in self.speeches], batch_first=True)
        noise = torch.zeros(len(MIXED), self.speeches[0][1].shape[0], max(MIXED))
        for row, (_, own) in enumerate(self.speeches):
            noise[row, :, : own.shape[1]] = own
        self._onnx(onnx, ids, [len(ids) for ids, _ in self.speeches], noise, list(MIXED))

    def _onnx(
        self, onnx: Any, ids: Tensor, lengths: list[int], noise: Tensor, frames: list[int]
    ) -> None:
        n, style = np.array(lengths), self.style_ttl.numpy()[None].repeat(len(lengths), 0)
        known = onnx.listen(onnx.text(ids.numpy(), n, style), n, style)
        latent, steps = noise.numpy(), np.full(len(lengths), 2, dtype=np.float32)
        for step in range(2):
            latent = onnx.step(latent, np.array(frames), n, step, steps, known)
        onnx.vocoder(latent)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=11, help="most runs of each cell")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds per cell, after 3 runs")
    parser.add_argument("--config", type=Path, help="config.json of a model of other sizes")
    parser.add_argument("--quick", action="store_true", help="3 runs of each cell")
    parsed = parser.parse_args(arguments)
    if parsed.quick:
        parsed.repeats = 3
    return parsed


@torch.inference_mode()
def main() -> None:
    # Imported here: `--help` and the GPU machine do not need ONNX Runtime.
    from benchmarks.onnx_export import OnnxModel

    arguments = parse()
    facts = machine("torch", "onnx", "onnxscript", "onnxruntime")
    print(describe(facts), flush=True)
    config = ModelConfig.load(arguments.config) if arguments.config else ModelConfig()
    truth = random_model(config)
    print("Exporting five graphs (about a minute and a half)", flush=True)
    models: dict[str, Any] = {"truth": truth, "onnx": OnnxModel(truth, 1)}
    models["float32"] = prepare(truth)
    models["bfloat16"] = prepare(truth, "cpu", "bfloat16")
    truth.duration_predictor.double()  # as the engine runs it

    one = OneThread(arguments, models)
    one.run()
    print(one.table(), flush=True)
    result: dict[str, Any] = {"benchmark": "prepared", "device": "cpu", **facts}
    result["fast_bfloat16"] = has_fast_bfloat16()
    if not has_fast_bfloat16():
        print("This processor has no bfloat16 instructions: the bfloat16 figures are emulation.")
    if config == ModelConfig():
        result |= floor(arguments, models["float32"])
        rate, share = result["matmul_gflop_s"], result["floor_share_fp32"]
        print(f"Matrix product {rate:.0f} GFLOP/s; 2 steps in float32 reach {share:.0%} of it")

    models["onnx two"] = copy.copy(models["onnx"])  # the same graphs, sessions of its own
    models["onnx two"].use_threads(2)
    result |= TwoThreads(arguments, models).run()
    for steps in (2, 5):
        cell = one.cells[f"whole, {steps} steps"]
        result[f"truth_vs_ort_1t_b1_{steps}s"] = cell["truth_ratio"]
        result[f"fp32_vs_ort_1t_b1_{steps}s"] = cell["float32_ratio"]
        result[f"bf16_vs_ort_1t_b1_{steps}s"] = cell["bfloat16_ratio"]
    result |= {"fp32_max_err": one.errors["float32"], "bf16_max_err": one.errors["bfloat16"]}
    if not (one.errors["float32"] <= FLOAT32_BOUND and one.errors["bfloat16"] <= BFLOAT16_BOUND):
        raise SystemExit(f"the sound differs too much from the truth's: {one.errors}")
    print(json_line(result | {"cells": one.cells}))


if __name__ == "__main__":
    main()
