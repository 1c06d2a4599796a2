from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from supertonic.config import (
    DurationPredictorConfig,
    ModelConfig,
    TextEncoderConfig,
    VectorEstimatorConfig,
    VocoderConfig,
)
from supertonic.errors import WeightsError
from supertonic.model import Supertonic
from supertonic.weights import load_weights, save_weights
from tests.random_weights import full_model, random_model

SMALL = ModelConfig(
    ldim=2,
    n_style=3,
    style_dim=16,
    text_encoder=TextEncoderConfig(
        width=16, convnext_hidden=16, dilations=(1,), attention_layers=1, heads=2, ffn_hidden=16
    ),
    duration_predictor=DurationPredictorConfig(
        width=8, convnext_hidden=8, dilations=(1,), attention_layers=1, ffn_hidden=8, head_hidden=8
    ),
    vector_estimator=VectorEstimatorConfig(
        width=16,
        convnext_hidden=16,
        blocks=2,
        dilations=(1, 2),
        last_dilations=(1,),
        time_dim=8,
        time_hidden=8,
        attention_width=16,
        text_heads=2,
    ),
    vocoder=VocoderConfig(width=8, convnext_hidden=8, dilations=(1, 2), head_hidden=8),
)
FIELD = "vector_estimator.vector_field.main_blocks"
TRACKED = "vocoder.decoder.final_norm.norm.num_batches_tracked"


def empty(config: ModelConfig) -> Supertonic:
    with torch.device("meta"):
        return Supertonic(config)


@pytest.fixture
def tensors(tmp_path: Path) -> dict[str, Tensor]:
    """The content of a correct small file, for tests to spoil."""
    save_weights(random_model(SMALL), tmp_path / "good.safetensors")
    return load_file(tmp_path / "good.safetensors")


@pytest.fixture
def load(tmp_path: Path):
    def write_and_load(tensors: dict[str, Tensor]) -> Supertonic:
        path = tmp_path / "tried.safetensors"
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
        model = empty(SMALL)
        load_weights(model, path)
        return model

    return write_and_load


def assert_same(model: Supertonic, other: Supertonic) -> None:
    found, expected = model.state_dict(), other.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_full_size_weights_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "supertonic.safetensors"
    save_weights(full_model(), path)
    model = empty(ModelConfig())
    load_weights(model, path)
    assert_same(model, full_model())
    path.unlink()


def test_one_renamed_tensor_is_refused_by_name(tensors, load) -> None:
    tensors["vocoder.decoder.embed.weight"] = tensors.pop("vocoder.decoder.embed.net.weight")
    with pytest.raises(WeightsError, match=r"vocoder\.decoder\.embed\.net\.weight is missing"):
        load(tensors)


def test_an_unknown_tensor_is_refused_by_name(tensors, load) -> None:
    tensors["vocoder.encoder.weight"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"unknown tensor vocoder\.encoder\.weight"):
        load(tensors)


def test_a_wrong_shape_is_refused_with_both_shapes(tensors, load) -> None:
    name = "duration_predictor.predictor.layers.1.weight"
    tensors[name] = tensors[name].T.contiguous()
    with pytest.raises(WeightsError, match=r"layers\.1\.weight: expected shape \(1, 8\), found"):
        load(tensors)


@pytest.mark.parametrize(
    "alias", ["9.attn.theta", "9.attn.increments", "11.attention.key_emb", "5.attention.key_emb"]
)
def test_a_left_out_copy_is_filled_in(tensors, load, alias: str) -> None:
    del tensors[f"{FIELD}.{alias}"]
    assert_same(load(tensors), random_model(SMALL))


def test_copies_that_differ_are_refused(tensors, load) -> None:
    tensors[f"{FIELD}.11.attention.key_emb"] += 1e-6
    with pytest.raises(WeightsError, match=r"11\.attention\.key_emb must equal"):
        load(tensors)


def test_a_shared_tensor_missing_under_all_names_is_refused(tensors, load) -> None:
    for block in (3, 9):
        del tensors[f"{FIELD}.{block}.attn.theta"]
    with pytest.raises(WeightsError, match=r"3\.attn\.theta is missing"):
        load(tensors)


def test_increments_may_be_integers(tensors, load) -> None:
    for block in (3, 9):
        tensors[f"{FIELD}.{block}.attn.increments"] = torch.arange(1000).view(1, -1, 1)
    assert_same(load(tensors), random_model(SMALL))


def test_the_batch_count_may_be_missing(tensors, load) -> None:
    del tensors[TRACKED]
    assert_same(load(tensors), random_model(SMALL))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_storage_is_widened(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "half.safetensors"
    save_weights(random_model(SMALL), path, dtype)
    model = empty(SMALL)
    load_weights(model, path)
    name = "vocoder.decoder.head.layer2.weight"
    stored, original = model.state_dict()[name], random_model(SMALL).state_dict()[name]
    assert stored.dtype == torch.float32
    assert torch.equal(stored, original.to(dtype).float())


def test_integers_in_place_of_weights_are_refused(tensors, load) -> None:
    name = "vocoder.decoder.head.layer2.weight"
    tensors[name] = tensors[name].to(torch.int8)
    with pytest.raises(WeightsError, match=r"layer2\.weight: expected float32.*found int8"):
        load(tensors)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nowhere.safetensors: no such file"):
        load_weights(empty(SMALL), tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_truncated_file_is_refused_in_one_line(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.safetensors"
    save_weights(random_model(SMALL), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="not a complete safetensors file") as caught:
        load_weights(empty(SMALL), path)
    assert "\n" not in str(caught.value)


def test_a_page_saved_instead_of_the_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.safetensors"
    path.write_text("<!doctype html><title>Not found</title>" * 20)
    with pytest.raises(WeightsError, match="not a complete safetensors file"):
        load_weights(empty(SMALL), path)


def test_saving_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "supertonic.safetensors"
    path.write_bytes(b"old")
    save_weights(random_model(SMALL), path)
    assert list(tmp_path.iterdir()) == [path]
    assert TRACKED in load_file(path)
