"""The engine on a GPU, ``make bench-gpu``: how much sound a second, how soon, and what limits it.

Claim: an H200 makes at least 10,000 seconds of sound a second at the best batch and 2 steps, and
7 s alone take at most 8 ms, everything from ids to samples in host memory included.
Ceiling: the device's matrix rate. A product of a large size is timed in the same run, and
`matmul_share` is the share of its rate that the model's multiplications reach at the best batch.

Full-size random weights in bfloat16 (`--precision`). Random weights choose their own durations, so
the text is made such that they come out near 7 s. Needs torch, numpy and safetensors, nothing else;
``python -m benchmarks.bench_gpu`` runs it where these are installed already, and with
``--device cpu`` anywhere, without graphs, to see that it works.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.measure import describe, json_line, machine
from supertonic.config import ModelConfig
from supertonic.engine import Engine
from supertonic.model import Supertonic
from supertonic.prepared import Prepared, prepare
from supertonic.rows import Rows
from supertonic.styles import Style
from supertonic.utterance import Utterance
from supertonic.voices import VOICES

# FLOP per second of sound: of text and vocoder together, and of each step.
FLOP, STEP_FLOP = (0.010 + 0.218 + 4.356) * 1e9, 0.919e9
MIXED_S = (1.0, 10.0)
SENTENCE = "The rain has stopped, and people are walking along the river again. "


def random_engine(config: ModelConfig, device: str, precision: str, seconds: float) -> Engine:
    """Full size; durations are set to about `seconds` for a text of 100 characters."""
    torch.manual_seed(1)
    model = Supertonic(config).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and not tensor.any():
            tensor.normal_(std=0.1)
    model.duration_predictor.predictor.layers[1].weight.data.zero_()
    model.duration_predictor.predictor.layers[1].bias.data.fill_(float(np.log(seconds)))
    rng = np.random.default_rng(0)
    duration = config.duration_predictor
    styles = {
        voice: Style(
            ttl=rng.standard_normal((config.n_style, config.style_dim), dtype=np.float32),
            dp=rng.standard_normal((duration.n_style, duration.style_dim), dtype=np.float32),
        )
        for voice in VOICES
    }
    return Engine(
        prepare(model, device, precision),
        styles,
        name="random",
        description="",
        is_builtin=False,
        fingerprint="",
        device=device,
        precision=precision,
    )


def said(rows: int, steps: int, seconds: list[float] | None = None) -> list[Utterance]:
    """Texts of 100 characters; `seconds` asks for other lengths than 7 s, by text and speed."""
    utterances = []
    for row in range(rows):
        wanted = seconds[row] if seconds else 7.0
        text = (SENTENCE * 3)[: max(5, round(100 * wanted / 7))]
        utterances.append(Utterance(text, "en", VOICES[row % 10], steps, 7 / wanted, row, 0))
    return utterances


def timed(run: Callable[[], Any], repeats: int) -> float:
    """Median seconds; samples in host memory mean that the device is done."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def settle(engine: Engine, utterances: list[Utterance]) -> None:
    """Run once, then make the graphs that were missed."""
    engine.synthesize(utterances)
    while engine.idle():
        pass


def audio_s(engine: Engine, utterances: list[Utterance]) -> float:
    return sum(len(a.samples) for a in engine.synthesize(utterances)) / engine.sample_rate


def sweep(engine: Engine, arguments: argparse.Namespace) -> list[dict[str, float]]:
    lines = []
    for steps in arguments.steps:
        for rows in arguments.batches:
            utterances = said(rows, steps)
            settle(engine, utterances)
            took, sound = timed(lambda u=utterances: engine.synthesize(u), arguments.repeats), 0.0
            sound = audio_s(engine, utterances)
            line = {
                "steps": steps,
                "batch": rows,
                "ms": took * 1000,
                "audio_s_per_s": sound / took,
                "tflop_s": sound * (FLOP + steps * STEP_FLOP) / took / 1e12,
                "memory_mb": engine.device_memory_bytes() / 1e6,
            }
            lines.append(line)
            print("| " + " | ".join(f"{value:.4g}" for value in line.values()) + " |", flush=True)
    return lines


def padding_cost(engine: Engine, arguments: argparse.Namespace) -> float:
    """Texts of 1 to 10 s together, divided by what each costs among as many of its own length."""
    rows = 4 if arguments.quick else 32
    lengths = np.linspace(*MIXED_S, rows).tolist()
    mixed = said(rows, 2, lengths)
    settle(engine, mixed)
    together = timed(lambda: engine.synthesize(mixed), arguments.repeats)
    shares = []
    for length in np.linspace(*MIXED_S, 2 if arguments.quick else 10).tolist():
        equal = said(rows, 2, [length] * rows)
        settle(engine, equal)
        shares.append(timed(lambda u=equal: engine.synthesize(u), arguments.repeats) / rows)
    return together / (rows * statistics.mean(shares))


def company_difference(engine: Engine) -> float:
    """How far an utterance in company is from the same one alone, as a share of its peak: the most
    in batches of 8 and 32.
    """
    alone = engine.synthesize(said(1, 2))[0].samples
    found = [engine.synthesize(said(rows, 2))[0].samples for rows in (8, 32)]
    assert all(len(one) == len(alone) for one in found), "lengths are computed in double precision"
    return max(float(np.abs(one - alone).max()) for one in found) / float(np.abs(alone).max())


@torch.inference_mode()
def first_slice_s(engine: Engine, repeats: int) -> float:
    """Of 7 s alone, until the first quarter of a second is there: in slices, without a graph."""
    times = []

    def run() -> None:
        started, heard = time.perf_counter(), []

        def note(row: int, samples: np.ndarray) -> None:
            if not heard:
                heard.append(time.perf_counter() - started)

        engine.synthesize(said(1, 2), note)
        times.extend(heard)

    for _ in range(repeats + 1):
        run()
    return statistics.median(times[1:])


def decode_share(engine: Engine, repeats: int) -> dict[str, float]:
    """The vocoder alone, 7 s, to see beside the whole."""
    model, device = engine.model, torch.device(engine.device)
    assert isinstance(model, Prepared)
    latent = torch.randn(100, model.config.latent_dim, device=device)
    with torch.inference_mode():
        took = timed(lambda: model.vocoder(latent, Rows([100], device)).cpu(), repeats)
    return {"vocoder_without_graph_ms": took * 1000}


def matrix_tflop_s(device: str, precision: str, size: int) -> float:
    """Best of ten: what the device can do at all."""
    dtype = getattr(torch, precision)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(5):
            a @ b
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        best = min(best, (time.perf_counter() - started) / 5)
    return 2 * size**3 / best / 1e12


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 5])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="small sizes, one run each")
    parser.add_argument("--config", help="config.json of a model of other sizes")
    parsed = parser.parse_args(arguments)
    if parsed.quick:
        parsed.batches, parsed.steps, parsed.repeats = [1, 2], [2], 1
    return parsed


def main() -> None:
    arguments = parse()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --device cpu runs without one, to see that it works")
    is_cuda = arguments.device.startswith("cuda")
    name = (
        torch.cuda.get_device_name(arguments.device) if is_cuda else platform.processor() or "CPU"
    )
    facts = machine("torch", "numpy")
    print(name, describe(facts), sep=", ", flush=True)
    config = ModelConfig.load(arguments.config) if arguments.config else ModelConfig()
    started = time.perf_counter()
    engine = random_engine(config, arguments.device, arguments.precision, 7.0)
    engine.warm_up()
    result: dict[str, Any] = {
        "benchmark": "gpu",
        "device": name,
        **facts,
        "precision": arguments.precision,
        "ready_s": time.perf_counter() - started,
    }
    size = 512 if arguments.quick else 8192
    result["matmul_tflop_s"] = matrix_tflop_s(arguments.device, arguments.precision, size)
    print(f"matrix product: {result['matmul_tflop_s']:.4g} TFLOP/s\n")
    print(
        "| steps | batch | ms | audio-s/s | TFLOP/s | MB |\n| --- | --- | --- | --- | --- | --- |"
    )
    lines = sweep(engine, arguments)
    at_two = [line for line in lines if line["steps"] == 2] or lines
    best = max(at_two, key=lambda line: line["audio_s_per_s"])
    result |= {
        "audio_s_per_s": best["audio_s_per_s"],
        "best_batch": best["batch"],
        "b1_ms": min(at_two, key=lambda line: line["batch"])["ms"],
        # The count of operations is that of the full size.
        "matmul_share": None if arguments.config else best["tflop_s"] / result["matmul_tflop_s"],
        "first_slice_ms": first_slice_s(engine, arguments.repeats) * 1000,
        "company_difference": company_difference(engine),
        "padding_cost": padding_cost(engine, arguments),
        "memory_mb": engine.device_memory_bytes() / 1e6,
        "graphs": len(engine.graphs.cache) if engine.graphs else 0,
        "graph_mb": engine.graphs.cache.n_bytes / 1e6 if engine.graphs else 0.0,
        **decode_share(engine, arguments.repeats),
        "lines": lines,
    }
    print(json_line(result))


if __name__ == "__main__":
    main()
