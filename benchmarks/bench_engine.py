"""Model speed without a queue, ``make bench-engine``: what a worker runs on a CPU, in float32 and
in bfloat16, beside the readable model they come from and ONNX Runtime with the same weights.

Claim: on one thread, batch 1 and 2 steps, float32 takes at most 0.9 of ONNX Runtime's time and
bfloat16, where the processor multiplies it, at most 0.6; on two threads, 16 utterances of mixed
length come out at least 1.3 and 1.8 times as fast.
Ceiling: the processor's matrix rate. A product of the vocoder's own shape is timed in turn with the
model; the share of the floor is the time the model's multiplications would take at that rate.

All competitors run in turn, A B C D, so that a slow minute hits all of them; the figures are
medians, and medians of the ratios of neighbouring runs. The sound is compared with the readable
model's first. An utterance has 110 tokens and 100 frames, 6.97 s. Five and eight steps are timed at
batch 1; for larger batches they follow from two steps and the time of one more.
"""

import argparse
import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.chart import bar_chart
from benchmarks.engine_variants import (
    CPU,
    FRAMES,
    Onnx,
    Ours,
    Run,
    Truth,
    Utterances,
    difference,
    random_model,
)
from benchmarks.measure import (
    Timings,
    alternate,
    describe,
    json_line,
    machine,
    ratio,
    table_row,
)
from supertonic.config import ModelConfig
from supertonic.kernels import Dense, Form
from supertonic.prepared import has_fast_bfloat16, prepare

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("truth", "fp32", "bf16", "ort")
BOUNDS = {"fp32": 1e-4, "bf16": 2e-2, "ort": 1e-4}  # of the peak, after 5 steps
# Multiply-accumulates of the example in full size; the estimator's with keys and values at hand.
MACS = {"duration": 36e6, "text": 761e6, "step": 3_200e6, "vocoder": 15_173e6}
MATRIX_FLOP = 2 * 600 * 512 * 2048
# Frames of the mixed utterances: one to ten seconds, in no order.
MIXED = (61, 144, 23, 99, 14, 122, 40, 84, 31, 137, 53, 107, 18, 130, 70, 115)
STEPS = (2, 5, 8)


def flop(part: str) -> float:
    if part.startswith("whole"):
        steps = int(part.split()[1])
        return 2 * (sum(MACS.values()) + (steps - 1) * MACS["step"])
    return 2 * MACS[part]


class Report:
    """Prints the table as it grows and keeps what goes into the JSON line."""

    def __init__(self) -> None:
        self.cells: dict[str, dict[str, float]] = {}
        heads = [f"{name} ms" for name in NAMES] + [f"{name} ÷ ort" for name in NAMES[:3]]
        heads += ["fp32 GFLOP/s", "bf16 GFLOP/s", "runs"]
        print(table_row(["threads", "batch", "part", *heads]))
        print(table_row(["---"] * (len(heads) + 3)), flush=True)

    def add(self, threads: int, batch: int, part: str, timings: dict[str, Timings]) -> None:
        cell = {f"{name}_ms": timing.median * 1000 for name, timing in timings.items()}
        for name in NAMES[:3]:
            cell[f"{name}_vs_ort"] = ratio(timings[name].wall, timings["ort"].wall)
        for name in ("fp32", "bf16"):
            cell[f"{name}_gflop_s"] = batch * flop(part) / timings[name].median / 1e9
        cell["runs"] = len(timings["ort"].wall)
        self._print(threads, batch, part, cell)

    def derive(self, threads: int, batch: int, steps: int) -> None:
        """So many steps, from two and the time of one."""
        key = f"{threads}t b{batch} "
        two, one = self.cells[f"{key}whole, 2 steps"], self.cells[f"{key}step"]
        ms = {name: two[f"{name}_ms"] + (steps - 2) * one[f"{name}_ms"] for name in NAMES}
        part = f"whole, {steps} steps"
        cell = {f"{name}_ms": value for name, value in ms.items()}
        for name in NAMES[:3]:
            cell[f"{name}_vs_ort"] = ms[name] / ms["ort"]
        for name in ("fp32", "bf16"):
            cell[f"{name}_gflop_s"] = batch * flop(part) / ms[name] / 1e6
        self._print(threads, batch, part, cell)

    def _print(self, threads: int, batch: int, part: str, cell: dict[str, float]) -> None:
        self.cells[f"{threads}t b{batch} {part}"] = cell
        figures = [f"{cell[f'{name}_ms']:.1f}" for name in NAMES]
        figures += [f"{cell[f'{name}_vs_ort']:.2f}" for name in NAMES[:3]]
        figures += [f"{cell[f'{name}_gflop_s']:.0f}" for name in ("fp32", "bf16")]
        figures.append(f"{cell['runs']:.0f}" if "runs" in cell else "derived")
        print(table_row([threads, batch, part, *figures]), flush=True)


class Competitors:
    def __init__(self, config: ModelConfig) -> None:
        # Imported here: `--help` does not need ONNX Runtime.
        from benchmarks.onnx_export import OnnxModel

        self.config, model = config, random_model(config)
        self.onnx = OnnxModel(model, 1)
        self.ours = {
            "fp32": Ours(prepare(model)),
            "bf16": Ours(prepare(model, "cpu", "bfloat16")),
        }
        model.duration_predictor.double()  # as the engine runs it
        self.all = {"truth": Truth(model), **self.ours, "ort": Onnx(self.onnx)}

    def errors(self, steps: int = 5) -> dict[str, float]:
        """Largest difference from the readable model's sound. SystemExit if it is too large."""
        said = Utterances.make(self.config, [FRAMES], steps)
        expected = self.all["truth"].whole(said)
        errors = {name: difference(self.all[name].whole(said), expected) for name in BOUNDS}
        if not all(errors[name] <= bound for name, bound in BOUNDS.items()):
            raise SystemExit(f"the sound differs too much from the readable model's: {errors}")
        return errors


def measure(arguments: argparse.Namespace, them: Competitors, report: Report) -> None:
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        them.onnx.use_threads(threads)
        with ExitStack() as stack:
            for ours in them.ours.values():
                stack.enter_context(ours.on(threads))
            for rows in arguments.batches:
                _measure_batch(arguments, them, report, threads, rows)


def _measure_batch(
    arguments: argparse.Namespace, them: Competitors, report: Report, threads: int, rows: int
) -> None:
    def run(part: str, runs: dict[str, Run]) -> None:
        # Two threads: ONNX Runtime's spin for a moment after their work.
        settle_s = 0.02 if threads > 1 else 0.0
        repeats = max(2, arguments.repeats // rows)
        timings = alternate(runs, repeats, arguments.limit, settle_s, least=min(3, repeats))
        report.add(threads, rows, part, timings)

    said = Utterances.make(them.config, [FRAMES] * rows, 2)
    parts = {name: one.parts(said) for name, one in them.all.items()}
    # With two threads the wholes only: parts are about kernels, not about threads.
    for part in () if threads > 1 else MACS if rows == 1 else ("step",):
        run(part, {name: parts[name][part] for name in NAMES})
    for steps in arguments.steps:
        if rows > 1 and steps > 2:
            if threads == 1:
                report.derive(threads, rows, steps)
            continue
        told = Utterances.make(them.config, [FRAMES] * rows, steps)
        whole = {name: lambda one=one, u=told: one.whole(u) for name, one in them.all.items()}
        run(f"whole, {steps} steps", whole)


def floor(arguments: argparse.Namespace, them: Competitors) -> dict[str, float | None]:
    """The matrix rates, and the share of them that 2 steps reach, measured in turn. The share is
    None for a model of other sizes, whose operations nobody counted.
    """
    torch.set_num_threads(1)
    said = Utterances.make(them.config, [FRAMES], 2)
    runs: dict[str, Run] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        dense, x = Dense(Form(CPU, dtype), torch.randn(2048, 512)), torch.randn(600, 512).to(dtype)

        def products(x: torch.Tensor = x, weight: torch.Tensor = dense.weight) -> None:
            for _ in range(10):
                torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

        runs[f"{name} products"] = products
        runs[name] = lambda one=them.ours[name]: one.whole(said)
    timings = alternate(runs, arguments.repeats, arguments.limit)
    result: dict[str, float | None] = {}
    for name in ("fp32", "bf16"):
        products_s = timings[f"{name} products"]
        result[f"matmul_gflop_s_{name}"] = 10 * MATRIX_FLOP / products_s.median / 1e9
        share = ratio(products_s.wall, timings[name].wall) / (10 * MATRIX_FLOP)
        is_counted = them.config == ModelConfig()
        result[f"floor_share_{name}"] = share * flop("whole, 2 steps") if is_counted else None
    return result


def mixed(arguments: argparse.Namespace, them: Competitors, threads: int = 2) -> dict[str, float]:
    """Sixteen utterances of one to ten seconds, 2 steps, as fast as each can: throughput ratios to
    the better of ONNX Runtime's batch 1 and 16, and to two sessions of one thread each, which is
    no option of ONNX Runtime but our way.
    """
    n_frames = (14, 23, 18) if arguments.quick else MIXED
    said = Utterances.make(them.config, n_frames, 2)
    audio_s = sum(n_frames) * them.config.samples_per_frame / them.config.sample_rate
    shared = copy.copy(them.onnx)  # the same graphs, sessions of its own
    shared.use_threads(threads)
    them.onnx.use_threads(1)
    one, two = Onnx(them.onnx), Onnx(shared)
    torch.set_num_threads(threads)
    with ExitStack() as stack:
        for ours in them.ours.values():
            stack.enter_context(ours.on(threads))
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        runs: dict[str, Run] = {
            "fp32": lambda: them.ours["fp32"].whole(said),
            "bf16": lambda: them.ours["bf16"].whole(said),
            "ort, batch 1": lambda: two.one_by_one(said),
            "ort, batch 16": lambda: two.whole(said),
            "ort, one per core": lambda: one.one_by_one(said, pool.map),
        }
        repeats = 1 if arguments.quick else max(3, arguments.repeats // 3)
        timings = alternate(runs, repeats, 3 * arguments.limit, settle_s=0.05)
    print("\n" + table_row([f"{threads} threads, 16 mixed", "seconds", "audio-s/s"]))
    print(table_row(["---"] * 3))
    for name, timing in timings.items():
        print(table_row([name, f"{timing.median:.2f}", f"{audio_s / timing.median:.1f}"]))
    best = min("ort, batch 1", "ort, batch 16", key=lambda name: timings[name].median)
    result = {}
    for name in ("fp32", "bf16"):
        own = timings[name].wall
        result[f"{name}_2t_mixed_audio_s_per_s"] = audio_s / timings[name].median
        result[f"{name}_2t_mixed_vs_ort"] = ratio(timings[best].wall, own)
        per_core = timings["ort, one per core"].wall
        result[f"{name}_2t_mixed_vs_ort_per_core"] = ratio(per_core, own)
    return result


def draw(path: Path, report: Report, audio_s: float) -> None:
    """One thread, batch 1: how much of real time each competitor takes."""
    words = ("readable", "ONNX Runtime", "float32", "bfloat16")
    series = {
        word: [report.cells[f"1t b1 whole, {n} steps"][f"{name}_ms"] / audio_s / 10 for n in STEPS]
        for word, name in zip(words, ("truth", "ort", "fp32", "bf16"), strict=True)
    }
    title = "Computing time as a share of the sound's, one thread, one utterance"
    bar_chart(path, title, "%", [f"{steps} steps" for steps in STEPS], series)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=9, help="most runs of a cell at batch 1")
    parser.add_argument("--limit", type=float, default=4.0, help="seconds per cell, after 3 runs")
    parser.add_argument("--config", type=Path, help="config.json of a model of other sizes")
    parser.add_argument("--plot", type=Path, help="write the chart of BENCHMARKS.md here")
    parser.add_argument("--quick", action="store_true", help="one thread, batch 1, 2 steps, 2 runs")
    parsed = parser.parse_args(arguments)
    if parsed.quick:
        parsed.batches, parsed.steps, parsed.threads, parsed.repeats = [1], [2], [1], 2
    return parsed


@torch.inference_mode()
def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    facts = machine("torch", "onnx", "onnxscript", "onnxruntime")
    print(describe(facts), flush=True)
    config = ModelConfig.load(arguments.config) if arguments.config else ModelConfig()
    print("Exporting five graphs (about a minute)\n", flush=True)
    them = Competitors(config)
    errors = them.errors()
    report = Report()
    measure(arguments, them, report)
    result: dict[str, Any] = {"benchmark": "engine", "device": "cpu", **facts}
    result |= {"fast_bfloat16": has_fast_bfloat16()}
    result |= {f"{name}_max_err": error for name, error in errors.items()}
    for key, cell in report.cells.items():
        if "whole" in key:
            short = key.replace("whole, ", "").replace(" steps", "s").replace(" ", "_")
            result |= {f"{name}_vs_ort_{short}": cell[f"{name}_vs_ort"] for name in NAMES[:3]}
    result |= floor(arguments, them)
    result |= mixed(arguments, them)
    if not has_fast_bfloat16():
        print("This processor has no bfloat16 instructions: its bfloat16 figures are emulation.")
    if arguments.plot:
        draw(arguments.plot, report, FRAMES * config.samples_per_frame / config.sample_rate)
    print(json_line(result | {"cells": report.cells}))


if __name__ == "__main__":
    main()
