import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from supertonic import kernels, loops, prepared_estimator
from supertonic.characters import encode
from supertonic.config import ModelConfig
from supertonic.cores import usable_cores
from supertonic.download import WEIGHTS
from supertonic.engine import Engine
from supertonic.errors import ConfigError
from supertonic.kernels import FEWEST, PART, SIZES, Form
from supertonic.layers import Span
from supertonic.loading import BUILTIN, load_engine, resolve_precision
from supertonic.model import Batch, Supertonic
from supertonic.prepared import Prepared, prepare, slice_ends
from supertonic.rows import Rows
from supertonic.utterance import Utterance
from supertonic.voices import VOICES
from supertonic.weights import load_weights
from tests.random_weights import full_model, random_style
from tests.test_engine import SENTENCES, mixed_utterances
from tests.test_model import CASES, WAVEFORM, Golden, golden_batch, golden_noise

# Shares of the waveform's peak. Random weights are the harder case: their sound is noise, with no
# silence or harmonics in which a matrix product could be exact.
FLOAT32 = 1e-5
BFLOAT16 = 1.5e-2
BFLOAT16_DECIBELS = 0.5  # log-spectral distance
# A row in a batch to the row alone. Bit by bit in bfloat16 on the processors where that was seen.
ROW = {"prepared": 1e-5, "bfloat16": 0.0 if torch.cpu._is_amx_tile_supported() else 1.5e-2}


@pytest.fixture(scope="module")
def truth() -> Supertonic:
    return full_engine().model  # with durations in float64, as always: the same sample counts


@pytest.fixture(scope="module")
def prepared(truth: Supertonic) -> Prepared:
    return prepare(truth)


@pytest.fixture(scope="module")
def bfloat16(truth: Supertonic) -> Prepared:
    return prepare(truth, "cpu", "bfloat16")


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@functools.cache
def full_engine() -> Engine:
    """Full size, random weights; here it only puts batches together."""
    return Engine(
        full_model(),
        {voice: random_style(voice, ModelConfig()) for voice in VOICES},
        name="random",
        description="",
        is_builtin=False,
        fingerprint="",
        device="cpu",
        precision="float32",
    )


def full_batch(utterances: list[Utterance]) -> Batch:
    ids = [encode(utterance.text, utterance.language) for utterance in utterances]
    return full_engine().collate(ids, utterances)


def short_mixed_batch(rows: int) -> Batch:
    return full_batch([replace(u, steps=5) for u in mixed_utterances(rows, longest=60)])


def row(batch: Batch, i: int) -> Batch:
    """One row of a batch, without its padding."""
    n = int(batch.text_lengths[i])
    return Batch(
        text_ids=batch.text_ids[i : i + 1, :n],
        text_lengths=batch.text_lengths[i : i + 1],
        style_ttl=batch.style_ttl[i : i + 1],
        style_dp=batch.style_dp[i : i + 1],
        speed=batch.speed[i : i + 1],
        steps=batch.steps[i : i + 1],
        seeds=batch.seeds[i : i + 1],
    )


def waveforms(model: Supertonic, batch: Batch) -> list[torch.Tensor]:
    padded, n_samples = model(batch)
    assert padded.shape == (len(n_samples), padded.shape[1])
    return [waveform[:n] for waveform, n in zip(padded, n_samples, strict=True)]


def largest_error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Of any row, as a share of that row's peak."""
    assert [len(row) for row in found] == [len(row) for row in expected]
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)
    )


def log_spectral_distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference of two power spectrograms, in decibels."""
    window = torch.hann_window(1024)
    spectra = [
        torch.stft(x, 1024, window=window, return_complex=True).abs() for x in (found, expected)
    ]
    floor = 1e-4 * float(spectra[1].max())
    a, b = (20 * spectrum.clamp(min=floor).log10() for spectrum in spectra)
    return float((a - b).square().mean().sqrt())


# float32


@pytest.mark.parametrize("name", CASES)
def test_the_prepared_model_matches_the_golden_waveform(prepared: Prepared, name: str) -> None:
    [found] = waveforms_with_golden_noise(prepared, [name])
    expected = Golden(name)["waveform"]
    n = min(len(found), len(expected))
    assert abs(len(found) - len(expected)) <= 1
    assert (found[:n] - expected[:n]).abs().max() <= WAVEFORM


def test_a_padded_batch_matches_the_golden_waveforms_too(prepared: Prepared) -> None:
    together = waveforms_with_golden_noise(prepared, list(CASES), extra_characters=7)
    for name, found in zip(CASES, together, strict=True):
        expected = Golden(name)["waveform"]
        n = min(len(found), len(expected))
        assert (found[:n] - expected[:n]).abs().max() <= WAVEFORM


def waveforms_with_golden_noise(
    model: Supertonic, names: list[str], extra_characters: int = 0
) -> list[torch.Tensor]:
    padded, n_samples = model(golden_batch(names, extra_characters), golden_noise)
    return [waveform[:n] for waveform, n in zip(padded, n_samples, strict=True)]


@pytest.mark.parametrize("rows", [2, 8])
def test_float32_equals_the_truth_for_rows_of_mixed_length(
    truth: Supertonic, prepared: Prepared, rows: int
) -> None:
    batch = short_mixed_batch(rows)
    assert largest_error(waveforms(prepared, batch), waveforms(truth, batch)) <= FLOAT32


def test_rows_with_different_steps_each_get_their_own(
    truth: Supertonic, prepared: Prepared
) -> None:
    batch = replace(short_mixed_batch(4), steps=[3, 1, 5, 2])
    assert largest_error(waveforms(prepared, batch), waveforms(truth, batch)) <= FLOAT32


def test_a_long_row_equals_the_truth(truth: Supertonic, prepared: Prepared) -> None:
    text = SENTENCES["en"] * 3
    batch = full_batch([Utterance(text, "en", "F2", 1, 1.0, 7, 0)])
    assert largest_error(waveforms(prepared, batch), waveforms(truth, batch)) <= FLOAT32


@pytest.mark.parametrize(("form", "bound"), [("prepared", 1e-5), ("bfloat16", 2e-2)])
def test_every_network_alone_equals_the_truths(
    request: pytest.FixtureRequest, truth: Supertonic, form: str, bound: float
) -> None:
    """From the truth's own inputs, so that a fault shows where it is."""
    model: Prepared = request.getfixturevalue(form)
    batch = row(short_mixed_batch(3), 2)
    cpu, n_characters = torch.device("cpu"), int(batch.text_lengths[0])
    noise, n_frames = truth.noise(batch, truth.durations(batch), golden_noise_of_any_seed)
    characters, frames = Rows([n_characters], cpu), Rows(n_frames.tolist(), cpu)

    text_emb = truth.text_encoder(batch.text_ids, batch.text_lengths, batch.style_ttl)
    found = model.text_encoder(batch.text_ids[0], characters, batch.style_ttl[0])
    assert largest_error([found], [text_emb[0].T]) <= bound

    span = Span.of(n_frames, noise.shape[2], noise.dtype)
    estimator = truth.vector_estimator
    heard = estimator.listen(text_emb, batch.text_lengths, batch.style_ttl)
    expected = estimator(noise, span, heard, 1, torch.tensor([5.0]))
    known = model.vector_estimator.listen(text_emb[0].T, characters, batch.style_ttl[0], frames)
    found = model.vector_estimator(frames, noise[0].T, known, 1, [5])
    assert largest_error([found], [expected[0].T]) <= bound

    found = model.vocoder(noise[0].T, frames)
    assert largest_error([found], [truth.vocoder(noise)[0]]) <= bound


def golden_noise_of_any_seed(seed: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    return golden_noise((ord("a"), 0), shape)


def test_small_sizes_equal_the_truth_for_many_rows() -> None:
    engines = [load_engine("tiny", device="cpu", prepared=form) for form in (True, False)]
    assert [isinstance(engine.model, Prepared) for engine in engines] == [True, False]
    utterances = mixed_utterances(16, languages=("en",))
    found, expected = (
        [torch.from_numpy(audio.samples) for audio in engine.synthesize(utterances)]
        for engine in engines
    )
    # Trained: a quiet row's peak is small beside what its sums go through.
    assert largest_error(found, expected) <= 1e-4


@pytest.mark.parametrize("form", ["prepared", "bfloat16"])
def test_a_row_alone_equals_the_row_in_a_batch(request: pytest.FixtureRequest, form: str) -> None:
    model: Prepared = request.getfixturevalue(form)
    batch = replace(short_mixed_batch(6), steps=[2, 5, 1, 3, 2, 4])
    alone = [waveforms(model, row(batch, i))[0] for i in range(6)]
    assert largest_error(waveforms(model, batch), alone) <= ROW[form]


LOOPS = ("multiply", "mix", "filter_channels", "find_by_row", "look_around", "look_around_by_row")


@pytest.mark.parametrize("form", ROW)
@pytest.mark.parametrize("rows", [1, 3])
def test_without_python_in_its_loops_every_bit_is_the_same(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, form: str, rows: int
) -> None:
    model, batch = request.getfixturevalue(form), short_mixed_batch(3)
    if not model.form.packs_weights:
        pytest.skip("this build of PyTorch has no oneDNN")
    batch = batch if rows == 3 else row(batch, 2)
    quick = waveforms(model, batch)
    calls: set[str] = set()
    for name in LOOPS:
        # There is none, and this fails, where TorchScript did not take the function.
        plain = getattr(kernels, name).__wrapped__

        def noted(*arguments: object, _name: str = name, _plain: Any = plain) -> Any:
            calls.add(_name)
            return _plain(*arguments)

        monkeypatch.setattr(kernels, name, noted)
    monkeypatch.setattr(prepared_estimator, "rotate", kernels.rotate.__wrapped__)
    assert all(map(torch.equal, waveforms(model, batch), quick))
    assert calls >= {"multiply", "mix", "filter_channels"} and any("around" in one for one in calls)
    assert "find_by_row" in calls or rows > 1


# Slices


def test_slices_begin_short_grow_and_cover_every_frame() -> None:
    assert slice_ends(1) == [1] and slice_ends(7) == [7] and slice_ends(8) == [4, 8]
    assert slice_ends(100) == [4, 12, 28, 60, 100]
    for n in range(1, 300):
        sizes = np.diff([0, *slice_ends(n)])
        assert sizes.sum() == n and (sizes > 0).all() and sizes[0] <= 7
        assert (sizes[1:] < 4 * sizes[:-1]).all()


@pytest.mark.parametrize("form", ["prepared", "bfloat16"])
def test_decoding_in_slices_gives_the_samples_of_decoding_it_whole(
    request: pytest.FixtureRequest, form: str
) -> None:
    model: Prepared = request.getfixturevalue(form)
    batch = replace(short_mixed_batch(3), steps=[2, 1, 3])
    pieces: list[list[torch.Tensor]] = [[], [], []]
    heard: list[int] = []
    for i, samples in model.slices(batch):
        pieces[i].append(samples)
        heard.append(i)
    # Everybody's first slice comes before anybody's second.
    assert sorted(heard[:3]) == [0, 1, 2] and len(pieces[0]) > 2
    assert all(len(own[0]) == 4 * 3072 for own in pieces)
    sliced = [torch.cat(own) for own in pieces]
    assert largest_error(sliced, waveforms(model, batch)) <= ROW[form]


# bfloat16


def test_bfloat16_stays_near_the_truth(truth: Supertonic, bfloat16: Prepared) -> None:
    batch = short_mixed_batch(4)
    found, expected = waveforms(bfloat16, batch), waveforms(truth, batch)
    assert largest_error(found, expected) <= BFLOAT16
    for a, b in zip(found, expected, strict=True):
        assert log_spectral_distance(a, b) <= BFLOAT16_DECIBELS


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="not seen on this processor")
def test_bfloat16_rows_of_any_length_do_not_depend_on_their_neighbours(bfloat16: Prepared) -> None:
    """From less than one part of a product to several, in an order that splits rows anywhere."""
    lengths = [131, 3, 300, 48, 17, 129, 64, 37]
    latents = [golden_noise_of_any_seed((0, 0), (144, n)).T.copy() for n in lengths]
    packed = torch.cat([torch.from_numpy(latent) for latent in latents])
    together = bfloat16.vocoder(packed, Rows(lengths, torch.device("cpu")))
    start = 0
    for n in lengths:
        own = packed[start : start + n]
        alone = bfloat16.vocoder(own, Rows([n], torch.device("cpu")))
        assert torch.equal(alone, together[3072 * start : 3072 * (start + n)]), f"{n} frames"
        start += n


def test_bfloat16_is_not_float32_and_sample_counts_are_the_same(
    prepared: Prepared, bfloat16: Prepared
) -> None:
    batch = short_mixed_batch(3)
    assert prepared.durations(batch) == bfloat16.durations(batch)
    assert largest_error(waveforms(bfloat16, batch), waveforms(prepared, batch)) > FLOAT32


# Preparing and loading


def test_the_model_it_came_from_may_change_or_go() -> None:
    config = ModelConfig.load(BUILTIN / "config.json")
    with torch.device("meta"):
        model = Supertonic(config)
    load_weights(model, BUILTIN / WEIGHTS)
    engine = load_engine("tiny", device="cpu")
    copy, said = prepare(model), [Utterance("Hello.", "en", "M1", 2, 1.0, 0, 0)]
    batch = engine.collate([encode("Hello.", "en")], said)
    [before] = waveforms(copy, batch)
    for name, tensor in model.state_dict().items():
        model.state_dict()[name].copy_(torch.zeros_like(tensor))
    [after] = waveforms(copy, batch)
    assert torch.equal(before, after) and before.abs().max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "float16"}, "'float16' needs a GPU; a CPU has float32 and bfloat16"),
        ({"precision": "float64"}, "this version has auto, float32, bfloat16, float16"),
        ({"precision": "bfloat16", "prepared": False}, "needs the prepared model"),
    ],
)
def test_precisions_that_do_not_fit_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_engine("tiny", device="cpu", **arguments)


def test_auto_is_bfloat16_only_where_the_processor_has_it_and_the_model_is_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = load_engine("tiny", device="cpu")
    assert small.precision == "float32"
    for has_it, expected in [(True, "bfloat16"), (False, "float32")]:
        monkeypatch.setattr("supertonic.loading.has_fast_bfloat16", lambda _, has_it=has_it: has_it)
        assert resolve_precision(ModelConfig(), "cpu") == expected
        assert resolve_precision(small.model.config, "cpu") == "float32"


def test_precision_is_part_of_the_fingerprint() -> None:
    engines = [load_engine("tiny", device="cpu", precision=p) for p in ("float32", "bfloat16")]
    assert engines[0].fingerprint != engines[1].fingerprint
    assert [engine.precision for engine in engines] == ["float32", "bfloat16"]


def test_passes_on_several_cores_give_what_one_core_gives() -> None:
    engine = load_engine("tiny", device="cpu")
    utterances = mixed_utterances(9, longest=80, languages=("en",))
    one_by_one = engine.synthesize(utterances)
    engine.size_per_pass = 90
    with ThreadPoolExecutor(2) as engine._cores:
        together = engine.synthesize(utterances)
    for a, b in zip(together, one_by_one, strict=True):
        assert np.abs(a.samples - b.samples).max() <= 1e-5


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_a_process_bound_to_one_processor_uses_one_thread() -> None:
    usual = os.sched_getaffinity(0)
    assert 1 <= usable_cores() <= len(usual)
    os.sched_setaffinity(0, {min(usual)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, usual)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("most", [PART, 2 * PART, 5 * PART])
def test_products_come_in_few_sizes_whatever_the_lengths(dtype: torch.dtype, most: int) -> None:
    """oneDNN keeps kernels for each of them."""
    form = Form(torch.device("cpu"), dtype, most_frames=most)
    if not form.packs_weights:
        pytest.skip("this build of PyTorch has no oneDNN")
    sizes = set()
    for n in range(1, 3000):
        parts = form.parts(n)
        starts = range(0, n, parts[0])
        own = {len(loops._fill(torch.empty(min(parts[0], n - at), 1), parts)) for at in starts}
        assert max(own) <= most and (dtype == torch.float32 or min(own) >= FEWEST)
        sizes |= own
    assert len(sizes) <= SIZES


@pytest.mark.parametrize("n", [1, PART - 1, PART, PART + 1, 3 * PART, 3 * PART + 1])
def test_a_product_in_parts_has_every_frame_once(n: int) -> None:
    torch.manual_seed(n)
    form, x, weight, plus = (
        Form(torch.device("cpu"), torch.float32),
        *map(torch.randn, ((n, 8), (16, 8), (n, 16))),
    )
    found = kernels.Dense(form, weight)(x, plus)
    torch.testing.assert_close(found, x @ weight.T + plus, atol=1e-5, rtol=1e-5)
