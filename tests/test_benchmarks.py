"""Each benchmark once, as small as it gets: it runs, counts no failure and ends with its JSON."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import bench_pipeline, bench_service
from benchmarks.bench_cores import ONE, PROCESSES, THREADS
from benchmarks.bench_pipeline import Rates
from benchmarks.chart import bar_chart
from benchmarks.measure import json_line
from supertonic.config import ModelConfig
from supertonic.cores import usable_cores
from tests.stack import ROOT

SHALLOW = replace(
    ModelConfig(),
    text_encoder=replace(ModelConfig().text_encoder, dilations=(1,), attention_layers=1),
    duration_predictor=replace(
        ModelConfig().duration_predictor, dilations=(1,), attention_layers=1
    ),
    vector_estimator=replace(
        ModelConfig().vector_estimator, blocks=1, dilations=(1,), last_dilations=(1,)
    ),
    vocoder=replace(ModelConfig().vocoder, dilations=(1,)),
)


def run(benchmark: str, *arguments: str, limit_s: float = 240) -> dict[str, Any]:
    """The benchmark's last line."""
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--quick", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result["commit"] and result["cpu"] and result["date"]
    return result


@pytest.mark.slow  # the exporter takes its time, however small the model
def test_the_engine_benchmark_compares_equal_sound(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(asdict(SHALLOW)))
    result = run("bench_engine", "--config", str(config), limit_s=600)
    assert 0 < result["fp32_max_err"] < 1e-4 > result["ort_max_err"] > 0
    assert 1e-4 < result["bf16_max_err"] < 2e-2
    for name in ("truth", "fp32", "bf16"):
        assert result[f"{name}_vs_ort_1t_b1_2s"] > 0
    assert result["fp32_2t_mixed_vs_ort"] > 0 < result["bf16_2t_mixed_vs_ort"]
    assert result["matmul_gflop_s_fp32"] > 0 < result["matmul_gflop_s_bf16"]
    assert result["floor_share_fp32"] is None, "of a model whose operations nobody counted"
    cells = {name.removeprefix("1t b1 ") for name in result["cells"]}
    assert cells == {"duration", "text", "step", "vocoder", "whole, 2 steps"}
    assert all(0 < cell["fp32_ms"] > 0 < cell["ort_ms"] for cell in result["cells"].values())


def test_the_chart_is_a_picture_with_every_value(tmp_path: Path) -> None:
    bar_chart(tmp_path / "a.svg", "Title", "%", ["x", "y"], {"one": [1.0, 2.5], "two": [4.0, 3.0]})
    texts = [element.text for element in ElementTree.parse(tmp_path / "a.svg").iter()]
    assert {"Title", "x", "y", "one", "two", "1%", "2.5%", "4%", "3%"} <= set(texts)


def test_the_gpu_benchmark_runs_where_there_is_no_gpu(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(asdict(SHALLOW)))
    result = run("bench_gpu", "--device", "cpu", "--precision", "float32", "--config", str(config))
    assert result["audio_s_per_s"] > 0 and result["b1_ms"] > 0 and result["padding_cost"] > 0
    assert result["matmul_share"] is None, "of a model whose operations nobody counted"
    assert 0 < result["first_slice_ms"] and result["company_difference"] < 1e-5


def test_the_gpu_benchmark_needs_little_beside_torch() -> None:
    absent = "celery", "redis", "kombu", "flask", "pydantic", "onnx", "onnxruntime", "requests"
    program = "import sys; sys.modules.update(dict.fromkeys(%r)); import benchmarks.bench_gpu"
    subprocess.run([sys.executable, "-c", program % (absent,)], cwd=ROOT, check=True, timeout=120)


def test_the_load_benchmark_starts_engines_and_workers(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(asdict(SHALLOW)))
    result = run("bench_load", "--config", str(config))
    for cell in (result["float32"], result["bfloat16"]):
        assert 0 < cell["load_s"] and 0 < cell["worker_ready_s"]
        assert 0 < cell["memory_per_weights"] and 0 < cell["worker_mb"]


def test_the_lengths_benchmark_tells_what_stays_in_memory() -> None:
    rows = run("bench_lengths")["rows"]
    assert [row["lengths"] for row in rows] == [
        "before",
        "new",
        "new, again",
        "others",
        "others, again",
    ]
    assert all(row["rss_mb"] > 50 for row in rows)
    assert all(row["audio_s_per_s"] > 0 for row in rows[1:])


def test_the_slices_benchmark_compares_with_and_without() -> None:
    result = run("bench_slices")
    assert result["failed"] == 0 and len(result["cells"]) == 3
    for cell in result["cells"].values():
        for name in ("with", "without"):
            assert 0 < cell[f"first_p50_ms_{name}"] <= cell[f"whole_p50_ms_{name}"]


def test_the_pipeline_benchmark_measures_both_competitors() -> None:
    result = run("bench_pipeline")
    assert result["failed"] == 0
    for name in ("idle", "http", "inprocess_http"):
        assert 0 < result[f"{name}_p50_ms"] <= result[f"{name}_p95_ms"]
    assert result["chunks_per_s_300k"] > 0 < result["inprocess_chunks_per_s_300k"]
    assert result["cpu_ms_per_chunk_300k"].keys() == {"web", "worker", "redis", "client"}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_more_cores_make_more_sound() -> None:
    """Each at its best of two, since the machine may be busy with something else."""
    runs = [rates for _ in range(2) for rates in run("bench_cores")["rates"].values()]
    assert all(rates["threads_vs_one"] > 0 < rates["threads_vs_processes"] for rates in runs)
    one, threads, processes = (max(r[name] for r in runs) for name in (ONE, THREADS, PROCESSES))
    if usable_cores() > 1:
        assert threads > 1.2 * one
    assert threads > 0.3 * processes


def test_every_stream_of_a_small_burst_is_complete() -> None:
    result = run("bench_streams")
    assert result["complete"] == result["streams"] == 10
    assert result["failed"] == 0
    assert result["chunks"] == 50
    assert 0 < result["first_p50_ms"] < result["whole_p50_ms"]


def test_the_load_harness_reports_every_load_and_its_rival() -> None:
    result = run("bench_service")
    assert result["failed"] == 0
    # Its own batch of 50 ms is in every wait.
    assert result["chunks_per_s"] > 0 and result["high_wait_p99_ms"] > 50
    loads = result["loads"]
    assert {name.split(", ")[2] for name in loads} == {"service", "in-process"}
    for name, load in loads.items():
        assert load["streams"] > 0 and load["refused"] == 0, name
        assert 0 < load["first_p50_ms"] <= load["first_p95_ms"] <= load["first_p99_ms"]
        assert 0 <= load["c0"] <= load["c50"] <= load["c100"] <= 100
        assert load["audio_s_per_s"] > 0
    burst = loads["tiny, burst of 10, service"]
    assert burst["cores"].keys() == {"web", "worker", "files", "redis", "client"}
    assert loads["tiny, 4 users + jobs, service"]["job_chunks"] > 0


def test_the_last_line_of_the_service_benchmark_has_every_figure() -> None:
    """A smoke run leaves out the pipeline's rows, and a whole one takes minutes."""
    pipeline: dict[str, Any] = {"failed": 1}
    ours, theirs = (
        {"first": [0.001], "per_chunk": [0.002]},
        {"first": [0.003], "per_chunk": [0.004]},
    )
    bench = SimpleNamespace(
        idle=lambda: {bench_service.SERVICE: ours, bench_service.RIVAL: theirs},
        published_to_seen=lambda: [0.005],
    )
    bench_pipeline._idle_rows(bench, pipeline)
    for label, per_s in (("300k", 300.0), ("30k", 30.0)):
        both = {bench_service.SERVICE: Rates([per_s]), bench_service.RIVAL: Rates([per_s + 1])}
        bench_pipeline._throughput_rows(both, label, pipeline)
    queue = {"chunks_per_s": 6.0, "high_wait_p50_ms": 7.0, "high_wait_p99_ms": 8.0, "failed": 1}
    line = json.loads(json_line(bench_service.last_line(pipeline, queue, {"load": {"failed": 1}})))
    assert line == queue | {
        "idle_p50_ms": 5,
        "idle_p95_ms": 5,
        "http_p50_ms": 1,
        "http_p95_ms": 1,
        "sse_300k_per_s": 300,
        "sse_30k_per_s": 30,
        "inprocess_http_p50_ms": 3,
        "inprocess_sse_300k_per_s": 301,
        "inprocess_sse_30k_per_s": 31,
        "failed": 3,
        "loads": {"load": {"failed": 1}},
    }


def test_a_killed_worker_loses_nothing_and_repeats_at_most_its_batch() -> None:
    result = run("bench_kills")
    assert result["kills"] >= 1 and result["lost"] == 0
    assert result["recomputed"] <= 32 * result["kills"]


def test_a_short_story_goes_through_as_a_novel_would() -> None:
    (story,) = run("bench_novel")["novels"]
    assert story["characters"] == 20_000 and story["chunks"] > 20
    assert story["others_failed"] == 0 and story["accepted_s"] < story["done_s"]


def test_a_small_burst_on_the_built_in_voice_is_measured() -> None:
    result = run("bench_burst", "--engine", "tiny", "--streams", "4")
    assert result["failed"] == 0
    assert result["alone_rounds"] == 2 and result["burst_rounds"] == 1
    assert 0 < result["alone_first_ms"] and 0 < result["burst_first_p95_ms"]


def test_the_simulator_serves_everybody_and_deadlines_keep_streams_whole(tmp_path: Path) -> None:
    result = run("simulate", "--plot", str(tmp_path / "plot.svg"))
    by_policy = {row["policy"]: row for row in result["loads"] if row["load"] < 0.6}
    assert by_policy["deadlines"]["c50"] == 1.0
    assert by_policy["deadlines"]["first_p95_s"] < 1.0 < by_policy["first come"]["first_p95_s"]
    assert {row["workers"] for row in result["workers"]} == {1, 4}
    assert "</svg>" in (tmp_path / "plot.svg").read_text()
