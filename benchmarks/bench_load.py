"""How soon a worker is ready and how much memory it takes, ``make bench-load``.

Claim: with full-size weights on a CPU the engine is ready 3 s after it is asked for, and holds at
most 1.3 times its weights. Ceiling: reading the file once, and one pass over each weight.

Random full-size weights are written to a temporary directory in the published form. Measured are
the engine in a fresh process, with imports, loading and warm-up apart, and a worker as the Procfile
starts it, from its start until ``/readyz`` is green.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.engine_variants import random_model
from benchmarks.measure import describe, json_line, machine, percentile, table
from benchmarks.service import ROOT, Service, get_status
from supertonic.config import ModelConfig
from supertonic.voices import VOICES

ENGINE = """
import json, resource, sys, time
from pathlib import Path

def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

times, memory, cpu = [time.perf_counter()], [], [time.process_time()]

def note():
    times.append(time.perf_counter()), memory.append(rss()), cpu.append(time.process_time())

from supertonic.loading import load_engine
note()
engine = load_engine(sys.argv[1], device="cpu", precision=sys.argv[2])
note()
engine.warm_up()
note()
names = ("import", "load", "warm_up")
print(json.dumps(
    {f"{name}_s": b - a for name, a, b in zip(names, times, times[1:])}
    | {f"{name}_cpu_s": b - a for name, a, b in zip(names, cpu, cpu[1:])}
    | {"weights_mb": memory[1] - memory[0], "after_warm_up_mb": memory[2] - memory[0]}
))
"""


def write_model(folder: Path, config: ModelConfig) -> int:
    """A model directory with random weights; their bytes in float32."""
    own = random_model(config).state_dict()
    state = {name: tensor.clone() for name, tensor in own.items()}  # as published: nothing shared
    save_file(state, str(folder / "supertonic.safetensors"))
    (folder / "voice_styles").mkdir()
    duration = config.duration_predictor
    shapes = {
        "style_ttl": (1, config.n_style, config.style_dim),
        "style_dp": (1, duration.n_style, duration.style_dim),
    }
    draw = np.random.default_rng(0)
    for voice in VOICES:
        style: dict[str, Any] = {}
        for name, shape in shapes.items():
            tokens = draw.standard_normal(shape)
            tokens /= np.linalg.norm(tokens, axis=-1, keepdims=True)
            style[name] = {"dims": list(shape), "data": tokens.tolist(), "type": "float32"}
        (folder / f"voice_styles/{voice}.json").write_text(json.dumps(style))
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in own.values()}.values())


def load(folder: Path, precision: str) -> dict[str, float]:
    command = [sys.executable, "-c", ENGINE, str(folder), precision]
    env = os.environ | {"OMP_WAIT_POLICY": "passive"}  # as the worker sets it
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def start_worker(folder: Path, precision: str) -> dict[str, float]:
    with Service(SUPERTONIC_MODEL=str(folder), SUPERTONIC_PRECISION=precision) as service:
        service.start("redis")
        service.start("web")
        service.wait_for(service.port, "/livez", 200)
        started = time.perf_counter()
        service.start("worker")
        while get_status(service.port, "/readyz") != 200:
            time.sleep(0.05)
            if time.perf_counter() > started + 300:
                raise RuntimeError("the worker was not ready after 300 s")
        return {
            "worker_ready_s": time.perf_counter() - started,
            "worker_mb": service.rss_bytes("worker") / 1e6,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--config", type=Path, help="config.json of a model of other sizes")
    parser.add_argument("--quick", action="store_true", help="once each")
    arguments = parser.parse_args()
    repeats = 1 if arguments.quick else arguments.repeats
    facts = machine("torch", "safetensors", "celery")
    print(describe(facts), flush=True)
    config = ModelConfig.load(arguments.config) if arguments.config else ModelConfig()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"benchmark": "load", **facts}
    with tempfile.TemporaryDirectory(prefix="supertonic-bench-") as name:
        folder = Path(name)
        weights_mb = write_model(folder, config) / 1e6
        if arguments.config:
            (folder / "config.json").write_text(arguments.config.read_text())
        for precision in ("float32", "bfloat16"):
            runs = [load(folder, precision) for _ in range(repeats)]
            cell = {key: percentile([run[key] for run in runs], 50) for key in runs[0]}
            share = weights_mb / (1 if precision == "float32" else 2)
            cell["memory_per_weights"] = cell["weights_mb"] / share
            cell |= start_worker(folder, precision)
            result[precision] = cell
    names = list(result["float32"])
    rows = [[n, *(f"{result[p][n]:.2f}" for p in ("float32", "bfloat16"))] for n in names]
    print(table(["", "float32", "bfloat16"], rows))
    print(json_line(result))


if __name__ == "__main__":
    main()
