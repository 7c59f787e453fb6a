"""Models in memory: random weights that run like real ones, real ones bit by bit, and bad ones refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from asdm.cli import options
from asdm.models import execution, loading
from asdm.models.loading import load_unet, materialise, meta_unet, unet_config_sha256
from asdm.models.settings import Setup
from tests.tiny import TINY, TINY_FAMILY, make_unet, run, unet_args

# ---------------------------------------------------------------------------------------------- random weights


def random_unet(seed: int = 0, dtype: str = "fp32"):
    return load_unet(TINY_FAMILY, seed=seed, dtype=dtype)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_random_weights_are_plain_numbers(dtype):
    unet = random_unet(dtype=dtype)
    smallest = torch.finfo(execution.dtype_of(dtype)).tiny
    for name, parameter in unet.named_parameters():
        assert parameter.dtype == execution.dtype_of(dtype), name
        assert parameter.isfinite().all(), name
        assert not ((parameter != 0) & (parameter.abs() < smallest)).any(), f"{name} has denormals"


def test_the_output_of_random_weights_keeps_its_scale():
    out = run(random_unet())
    assert out.isfinite().all()
    assert 1e-2 < out.std() < 1e2


def test_a_unet_in_bf16_runs():
    inputs = {k: v.bfloat16() if torch.is_tensor(v) else v for k, v in unet_args().items()}
    with torch.no_grad():
        out = random_unet(dtype="bf16")(**inputs)[0]
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


def test_random_weights_follow_the_seed():
    one, again, other = random_unet(0), random_unet(0), random_unet(1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    matrices = [(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True) if a.dim() > 1]
    assert not any(torch.equal(a, b) for a, b in matrices)


def test_no_two_weights_are_the_same():
    seen: dict[tuple, list[torch.Tensor]] = {}
    for name, parameter in random_unet().named_parameters():
        if parameter.dim() > 1:
            others = seen.setdefault(tuple(parameter.shape), [])
            assert not any(torch.equal(parameter, other) for other in others), name
            others.append(parameter)
    assert max(map(len, seen.values())) > 10  # there were many of one shape


def test_norms_are_one_and_biases_nothing_and_matrices_keep_the_variance():
    unet = random_unet()
    norm, linear = unet.conv_norm_out, unet.time_embedding.linear_2
    assert (norm.weight == 1).all()
    assert (norm.bias == 0).all()
    assert (linear.bias == 0).all()
    fan_in = linear.weight.shape[1]
    assert linear.weight.var().item() == pytest.approx(1 / fan_in, rel=0.1)
    assert unet.conv_in.weight.var().item() == pytest.approx(1 / (4 * 9), rel=0.2)


def test_buffers_that_number_positions_are_filled():
    config = CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=6,
    )  # fmt: skip
    with torch.device("meta"):
        text = CLIPTextModel(config)
    text = materialise(text)
    positions = [buffer for name, buffer in text.named_buffers() if name.endswith("position_ids")]
    assert [p.flatten().tolist() for p in positions] == [[0, 1, 2, 3, 4, 5]]
    with torch.no_grad():
        assert text(torch.ones(1, 6, dtype=torch.long)).last_hidden_state.isfinite().all()


def test_a_weight_longer_than_the_tile_is_filled_to_its_end():
    with torch.device("meta"):
        layer = torch.nn.Linear(2003, 1009)
    assert layer.weight.numel() > 2 * loading._TILE
    weight = materialise(layer).weight.detach()
    assert (weight != 0).float().mean() > 0.999
    assert not torch.equal(weight[0], weight[-1])
    assert weight.std().item() == pytest.approx(2003**-0.5, rel=0.01)


# ---------------------------------------------------------------------------------------------- real weights


def test_a_unet_from_a_folder_is_the_one_that_was_saved(tiny_folder, tiny_unet):
    loaded = load_unet(TINY_FAMILY, str(tiny_folder))
    assert type(loaded) is UNet2DConditionModel
    assert not loaded.training
    assert loaded.state_dict().keys() == tiny_unet.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in tiny_unet.state_dict().items())
    assert torch.equal(run(copy.deepcopy(loaded)), run(tiny_unet))


def test_a_pipeline_folder_gives_its_unet(tiny_folder, tiny_unet, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "unet")
    loaded = load_unet(TINY_FAMILY, str(tmp_path))
    assert torch.equal(loaded.conv_in.weight, tiny_unet.conv_in.weight)


def test_real_weights_in_another_dtype(tiny_folder, tiny_unet):
    loaded = load_unet(TINY_FAMILY, str(tiny_folder), dtype="bf16")
    assert torch.equal(loaded.conv_out.weight, tiny_unet.conv_out.weight.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_weights_of_eight_bits_are_widened(tiny_unet, tmp_path, dtype):
    """As checkpoints are shared that should be small; NaN in them is found, too."""
    folder = tmp_path / "unet"
    tiny_unet.save_pretrained(folder, safe_serialization=True)
    (file,) = folder.glob("*.safetensors")
    small = {name: tensor.to(dtype) for name, tensor in tiny_unet.state_dict().items()}
    save_file(small, file)
    loaded = load_unet(TINY_FAMILY, str(folder))
    assert all(torch.equal(loaded.state_dict()[name], tensor.float()) for name, tensor in small.items())
    assert run(loaded).isfinite().all()
    small["conv_out.bias"][0] = torch.tensor(float("nan")).to(dtype)
    save_file(small, file)
    with pytest.raises(ValueError, match=r"conv_out\.bias holds NaN"):
        load_unet(TINY_FAMILY, str(folder))


def test_a_truncated_file_of_weights_is_refused_in_one_sentence(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "unet")
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    _refused(tmp_path / "unet", "is not a safetensors file, or it is damaged")


def test_weights_of_other_shapes_are_refused_in_one_sentence(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "unet")
    config = json.loads((tmp_path / "unet/config.json").read_text())
    (tmp_path / "unet/config.json").write_text(json.dumps(config | {"cross_attention_dim": 48}))
    _refused(tmp_path / "unet", "cannot load a UNet from")


def test_a_pickle_is_never_read(tiny_folder, tiny_unet, tmp_path):
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text())
    torch.save(tiny_unet.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    _refused(tmp_path, r"model\.bin is a pickle, .*; convert it to safetensors")


def test_a_folder_without_a_config_is_refused(tmp_path):
    _refused(tmp_path, "neither unet/config.json nor config.json")


@pytest.mark.parametrize("weights", ["./gone", "gone", "a/b/c"])
def test_a_folder_that_is_not_there_is_refused(weights):
    _refused(weights, "does not exist; name a diffusers folder, a .safetensors file or a hub id")


def _refused(weights, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        load_unet(TINY_FAMILY, str(weights))
    assert "\n" not in str(caught.value)
    assert str(weights) in str(caught.value)


# ---------------------------------------------------------------------------------------------- hash of a config


def test_the_hash_of_a_config_ignores_private_notes_and_spelled_out_defaults(tiny_unet, tiny_folder):
    plain = unet_config_sha256(TINY)
    assert unet_config_sha256(TINY | {"_diffusers_version": "0.1", "_name_or_path": "somewhere"}) == plain
    assert unet_config_sha256(TINY | {"dropout": 0.0, "flip_sin_to_cos": True}) == plain
    assert unet_config_sha256({**TINY, "block_out_channels": tuple(TINY["block_out_channels"])}) == plain
    assert unet_config_sha256(dict(reversed(TINY.items()))) == plain
    # as diffusers keeps it in memory, and as it writes it: every default spelled out
    assert unet_config_sha256(tiny_unet.config) == plain
    assert unet_config_sha256(json.loads((tiny_folder / "config.json").read_text())) == plain
    assert unet_config_sha256(meta_unet(TINY_FAMILY).config) == plain


@pytest.mark.parametrize(
    "change",
    [{"layers_per_block": 1}, {"cross_attention_dim": 48}, {"mid_block_type": None}, {"norm_num_groups": 4}],
    ids=lambda change: next(iter(change)),
)
def test_the_hash_of_a_config_follows_a_real_change(change):
    assert unet_config_sha256(TINY | change) != unet_config_sha256(TINY)
    assert unet_config_sha256(make_unet(**change).config) == unet_config_sha256(TINY | change)


# ---------------------------------------------------------------------------------------------- setup


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        ({"dtype": "float8"}, "unknown dtype 'float8'; choose from fp32, bf16, fp16"),
        ({"device": "tpu"}, "device 'tpu' is not available; choose from cpu"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"threads": -1}, "threads must be at least 1, got -1"),
    ],
)
def test_a_setup_that_cannot_be_is_refused(setup, words):
    with pytest.raises(ValueError, match=words):
        execution.check_setup(Setup(**setup))


def test_a_setup_that_can_be_is_not():
    execution.check_setup(Setup(dtype="bf16", device="cpu", batch=2, threads=1))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_dtype_that_this_cpu_lacks_is_warned_of(dtype, monkeypatch, capsys):
    has = {"it": False}
    monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{dtype}_supported", lambda: has["it"])
    options.warn_if_slow("cpu", dtype)
    assert f"Warning: this CPU has no instructions for {dtype}" in capsys.readouterr().err
    has["it"] = True
    for device, asked, backend in (("cpu", dtype, "eager"), ("cpu", "fp32", "eager")):
        options.warn_if_slow(device, asked, backend)
    has["it"] = False
    for device, asked, backend in (("cuda", dtype, "eager"), ("cpu", dtype, "openvino"), ("cpu", "fp32", "eager")):
        options.warn_if_slow(device, asked, backend)
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------------------------------------- broken folders


def test_a_missing_weight_is_named(tiny_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_folder, tmp_path / "unet")
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    del weights["conv_in.weight"]
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"cannot load a UNet from .*conv_in\.weight|1 weights are missing"):
        load_unet(TINY_FAMILY, str(folder))


@pytest.mark.parametrize(
    ("text", "words"), [("{ broken", "config.json is not valid JSON"), ("[]", "is not the config")]
)
def test_a_broken_config_is_named(tiny_folder, tmp_path, text, words):
    folder = shutil.copytree(tiny_folder, tmp_path / "unet")
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        load_unet(TINY_FAMILY, str(folder))


def test_the_config_hash_ignores_where_a_unet_was_loaded_from(tiny_folder):
    loaded = UNet2DConditionModel.from_pretrained(tiny_folder)
    assert unet_config_sha256(loaded.config) == unet_config_sha256(make_unet().config)


def test_the_name_that_records_give_to_shipped_weights_loads_them(tiny_folder, tiny_unet):
    family = dataclasses.replace(TINY_FAMILY, folder=tiny_folder)
    assert torch.equal(load_unet(family, "shipped").conv_in.weight, tiny_unet.conv_in.weight)
