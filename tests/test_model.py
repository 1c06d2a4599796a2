import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from supertonic.characters import encode
from supertonic.config import ModelConfig
from supertonic.layers import Span
from supertonic.model import Batch, Supertonic
from tests.random_weights import full_model, random_style, z

DATA = Path(__file__).parent / "data"
GOLDEN = np.load(DATA / "golden.npz")
CASES = ("a", "b", "c")

# Largest absolute differences; the model was written from a description, not from the code that
# made the numbers. A LayerNorm eps of 1e-5 alone lands outside.
DURATION, TEXT_EMB, LATENT, WAVEFORM = 5e-7, 5e-6, 1e-5, 5e-5


@dataclass(frozen=True)
class Golden:
    """One case: what went in, and what an independent implementation computed from it."""

    name: str

    def __getitem__(self, quantity: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(GOLDEN[f"{self.name}.{quantity}"]))

    def batch(self) -> Batch:
        return golden_batch([self.name])


def golden_batch(names: list[str], extra_characters: int = 0) -> Batch:
    cases = [Golden(name) for name in names]
    styles = [random_style(str(GOLDEN[f"{name}.voice"]), ModelConfig()) for name in names]
    ids = [case["text_ids"] for case in cases]
    lengths = [row.shape[1] for row in ids]
    width = max(lengths) + extra_characters
    return Batch(
        text_ids=torch.cat([F.pad(row, (0, width - row.shape[1])) for row in ids]),
        text_lengths=torch.tensor(lengths),
        style_ttl=torch.from_numpy(np.stack([style.ttl for style in styles])),
        style_dp=torch.from_numpy(np.stack([style.dp for style in styles])),
        speed=torch.stack([case["speed"] for case in cases]),
        steps=[int(case["steps"]) for case in cases],
        seeds=[(ord(name), 0) for name in names],
    )


def golden_noise(seed: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    return z(f"{chr(seed[0])}.noise", (1, *shape))[0].astype(np.float32)


def assert_close(found: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() <= bound


@pytest.fixture(scope="module")
def model() -> Supertonic:
    return full_model()


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def test_names_and_shapes_are_those_of_the_published_weights(model: Supertonic) -> None:
    listed = json.loads((DATA / "supertonic-2.tensors.json").read_text())["tensors"]
    published = {tensor["name"]: tuple(tensor["shape"]) for tensor in listed}
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == published


def test_shared_tensors_are_those_listed_as_aliases(model: Supertonic) -> None:
    listed = json.loads((DATA / "supertonic-2.tensors.json").read_text())["tensors"]
    aliases = {t["name"]: t["alias_of"] for t in listed if "alias_of" in t}
    groups = {tuple(names[1:]): names[0] for names in model.shared_names}
    assert {name: first for names, first in groups.items() for name in names} == aliases


def test_text_becomes_the_golden_ids(golden: Golden) -> None:
    tagged = str(GOLDEN[f"{golden.name}.text"])
    language, text = tagged[1:3], tagged[4:-5]
    assert encode(text, language) == golden["text_ids"][0].tolist()


def test_duration_matches(model: Supertonic, golden: Golden) -> None:
    batch = golden.batch()
    seconds = model.duration_predictor(batch.text_ids, batch.text_lengths, batch.style_dp)
    assert_close(seconds, golden["duration"], DURATION)


def test_sample_count_follows_exactly_from_the_golden_duration(
    model: Supertonic, golden: Golden
) -> None:
    assert model.n_samples(golden["duration"], golden["speed"]).item() == golden["n_samples"].item()


def test_text_embedding_matches(model: Supertonic, golden: Golden) -> None:
    batch = golden.batch()
    text_emb = model.text_encoder(batch.text_ids, batch.text_lengths, batch.style_ttl)
    assert_close(text_emb, golden["text_emb"], TEXT_EMB)


def test_every_step_matches_from_the_golden_step_before(model: Supertonic, golden: Golden) -> None:
    batch, latents = golden.batch(), golden["latents"]
    n_samples = golden["n_samples"].item()
    noise, n_frames = model.noise(batch, [n_samples], golden_noise)
    span = Span.of(n_frames, noise.shape[2], noise.dtype)
    estimator = model.vector_estimator
    heard = estimator.listen(golden["text_emb"], batch.text_lengths, batch.style_ttl)
    for step, before in enumerate([noise, *latents.split(1)[:-1]]):
        after = estimator(before, span, heard, step, torch.tensor([float(len(latents))]))
        assert_close(after, latents[step : step + 1], LATENT)


def test_waveform_matches_from_the_golden_latent(model: Supertonic, golden: Golden) -> None:
    waveform = model.vocoder(golden["latents"][-1:])
    n_samples = golden["n_samples"].item()
    assert_close(waveform[0, :n_samples], golden["waveform"], WAVEFORM)


def test_end_to_end_matches(model: Supertonic, golden: Golden) -> None:
    waveform, [n_samples] = model(golden.batch(), golden_noise)
    expected = golden["waveform"]
    assert abs(n_samples - len(expected)) <= 1
    n = min(n_samples, len(expected))
    assert_close(waveform[0, :n], expected[:n], WAVEFORM)


def test_a_padded_batch_with_mixed_steps_matches_too(model: Supertonic) -> None:
    batch = golden_batch(list(CASES), extra_characters=7)
    seconds = model.duration_predictor(batch.text_ids, batch.text_lengths, batch.style_dp)
    assert_close(seconds, torch.cat([Golden(name)["duration"] for name in CASES]), DURATION)

    text_emb = model.text_encoder(batch.text_ids, batch.text_lengths, batch.style_ttl)
    n_samples = [Golden(name)["n_samples"].item() for name in CASES]
    noise, n_frames = model.noise(batch, n_samples, golden_noise)
    latent = model.denoise(F.pad(noise, (0, 9)), n_frames, text_emb, batch)
    waveform = model.vocoder(latent)
    for row, name in enumerate(CASES):
        golden, frames, n = Golden(name), n_frames[row], n_samples[row]
        characters = batch.text_lengths[row]
        assert_close(text_emb[row, :, :characters], golden["text_emb"][0], TEXT_EMB)
        assert_close(latent[row, :, :frames], golden["latents"][-1], LATENT)
        assert_close(waveform[row, :n], golden["waveform"], WAVEFORM)
        assert not text_emb[row, :, characters:].any() and not latent[row, :, frames:].any()


def test_edges_repeat_each_rows_own_first_and_last_frame() -> None:
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]], [[5.0, 6.0, 0.0, 0.0]]])
    padded = Span.of(torch.tensor([4, 2]), 4, x.dtype).pad_edges(x, 2)
    assert padded[0, 0].tolist() == [1, 1, 1, 2, 3, 4, 4, 4]
    assert padded[1, 0].tolist() == [5, 5, 5, 6, 6, 6, 6, 6]
