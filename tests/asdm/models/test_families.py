"""Families by name and by folder: their configs build, and their example inputs fit."""

from __future__ import annotations

import json

import pytest
import torch

from asdm.models import execution
from asdm.models.components import components_of, count_call
from asdm.models.example_inputs import latent_size, unet_inputs
from asdm.models.families import load_family
from asdm.models.loading import meta_unet
from asdm.models.sources import own_weights
from asdm.unet import flops
from asdm.unet.blocks import iter_parts, iter_units, topology
from asdm.utils import registry
from tests.tiny import TINY, TINY_FAMILY

FAMILIES = registry.names("asdm.models.families")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_builds_on_the_meta_device_and_takes_its_example_inputs(name):
    family = load_family(name)
    unet = meta_unet(family)
    assert family.name == name
    assert not unet.training
    assert {p.device.type for p in unet.parameters()} == {"meta"}
    inputs = unet_inputs(family, device="meta", batch=2)
    with torch.no_grad():
        out = unet(**inputs)[0]
    assert out.shape == (2, 4, family.latent, family.latent) == inputs["sample"].shape
    assert family.prediction_type in ("epsilon", "v_prediction")
    assert len(list(iter_units(unet))) > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_other_components_build_and_are_counted(name):
    for part in components_of(load_family(name)):
        counted = count_call(part)
        assert counted.params > 0, part.name
        assert counted.total.macs > 0, part.name
        assert counted.uncounted_ops == {}, part.name


def test_guidance_encodes_two_prompts_and_decodes_one_image():
    family = load_family("sd15")
    assert {part.name: part.calls for part in components_of(family)} == {"text_encoder": 2, "vae_decoder": 1}
    assert {part.calls for part in components_of(family, guided=False)} == {1}


def test_sdxl_has_two_text_encoders_and_its_own_conditions():
    family = load_family("sdxl")
    names = [part.name for part in components_of(family)]
    assert names == ["text_encoder", "text_encoder_2", "vae_decoder"]
    added = unet_inputs(family, batch=3, device="meta")["added_cond_kwargs"]
    assert added["time_ids"].shape == (3, 6)
    assert added["text_embeds"].shape == (3, 2816 - 6 * 256)


@pytest.mark.parametrize(
    ("name", "latent", "width"), [("sd15", 64, 768), ("sd21_base", 64, 1024), ("sd21", 96, 1024), ("sdxl", 128, 2048)]
)
def test_input_shapes(name, latent, width):
    inputs = unet_inputs(load_family(name), batch=2, device="meta")
    assert inputs["sample"].shape == (2, 4, latent, latent)
    assert inputs["encoder_hidden_states"].shape == (2, 77, width)
    assert inputs["timestep"].shape == (2,)


def test_inputs_are_the_same_for_the_same_seed():
    one, again, other = (unet_inputs(TINY_FAMILY, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one["sample"], again["sample"])
    assert not torch.equal(one["sample"], other["sample"])
    assert unet_inputs(TINY_FAMILY, dtype="bf16")["sample"].dtype == torch.bfloat16


def test_another_size_costs_more_and_must_fit_the_levels():
    family = load_family("sd15")
    assert (latent_size(family, None), latent_size(family, 512), latent_size(family, 768)) == (64, 64, 96)
    assert unet_inputs(family, size=256, device="meta")["sample"].shape == (1, 4, 32, 32)
    step = 8 * 2**3  # the VAE's factor, and three halvings
    for size in (0, -512, 500, 512 + 8, step // 2):
        with pytest.raises(
            ValueError, match=f"size {size} does not fit sd15: choose a multiple of {step} pixels, such as 512"
        ):
            latent_size(family, size)
    assert latent_size(load_family("sdxl"), 8 * 2**2) == 4


# ---------------------------------------------------------------------------------------------- folders


def test_a_folder_with_one_unet_is_a_family(tiny_folder):
    family = load_family(str(tiny_folder))
    assert (family.folder, family.size, family.latent) == (tiny_folder, 16 * 8, 16)
    assert (family.vae, family.text_encoders, family.prediction_type) == (None, (), "epsilon")
    counted = flops.count(meta_unet(family), (), unet_inputs(family, device="meta"))
    assert counted.total == flops.count(meta_unet(TINY_FAMILY), (), unet_inputs(TINY_FAMILY, device="meta")).total
    assert components_of(family) == []


def test_a_pipeline_folder_is_a_family_with_all_its_components(tmp_path):
    vae = {"block_out_channels": [8, 8, 8], "norm_num_groups": 4, "down_block_types": ["DownEncoderBlock2D"] * 3,
           "up_block_types": ["UpDecoderBlock2D"] * 3, "latent_channels": 4}  # fmt: skip
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "max_position_embeddings": 16, "vocab_size": 100}  # fmt: skip
    for name, config in {
        "unet/config.json": TINY,
        "vae/config.json": vae,
        "text_encoder/config.json": text,
        "scheduler/scheduler_config.json": {"prediction_type": "v_prediction"},
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(config))
    family = load_family(str(tmp_path))
    assert (family.vae_factor, family.size) == (4, 16 * 4)  # three VAE levels halve twice
    assert (family.tokens, family.prediction_type, family.title) == (16, "v_prediction", tmp_path.name)
    parts = {part.name: count_call(part) for part in components_of(family)}
    assert set(parts) == {"text_encoder", "vae_decoder"}
    assert unet_inputs(family)["encoder_hidden_states"].shape == (1, 16, 32)


def test_a_family_has_weights_where_its_folder_has_some(tiny_folder, tmp_path):
    assert own_weights(load_family(str(tiny_folder))) == str(tiny_folder)
    assert own_weights(load_family("sd15")) == execution.RANDOM
    assert own_weights(load_family("mini")) == str(load_family("mini").folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "neither unet/config.json nor config.json"),
        ('{"_class_name": "AutoencoderKL"}', "class AutoencoderKL is not supported; choose"),
        ('{"_class_name": "UNet2DConditionModel"}', "not the config of a diffusers UNet"),
        ("[]", "not the config of a diffusers UNet"),
        ("{", "not valid JSON"),
    ],
)
def test_a_folder_that_is_no_family_says_why(tmp_path, content, words):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=words) as caught:
        load_family(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["sd16", "SD15", "_parts"])
def test_an_unknown_family_is_told_the_choices(name):
    with pytest.raises(
        ValueError, match=r"^unknown family .*; choose from .*sd15, sd21, .*or name a diffusers folder"
    ) as caught:
        load_family(name)
    assert repr(name) in str(caught.value)


def test_a_folder_that_is_not_there_is_told_apart_from_a_typo():
    with pytest.raises(ValueError, match=r"^students/mine does not exist; .*sd15"):
        load_family("students/mine")


# ---------------------------------------------------------------------------------------------- pruned SDXL configs

# What their authors changed of SDXL's config, and the millions of parameters that they publish for the UNet.
SEGMIND_SSD_1B = {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [1, [2, 2], [4, 4]],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
}
SEGMIND_VEGA = {"mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, 1, 2]}
KOALA_700M = {"layers_per_block": 1, "mid_block_type": None, "transformer_layers_per_block": [1, 2, 5]}
KOALA_1B = {"layers_per_block": 1, "transformer_layers_per_block": [1, 2, 6]}
PRUNED = [
    # changes, millions of parameters, ResNet units, Transformer units
    pytest.param(SEGMIND_SSD_1B, 1330, 6 + 1 + 9, 4 + 6, id="segmind/SSD-1B"),
    pytest.param(SEGMIND_VEGA, 745, 6 + 1 + 9, 4 + 6, id="segmind/Segmind-Vega"),
    pytest.param(KOALA_700M, 782, 3 + 6, 2 + 4, id="etri-vilab/koala-700m"),
    pytest.param(KOALA_1B, 1161, 3 + 2 + 6, 2 + 1 + 4, id="etri-vilab/koala-1b"),
]


def configured(changes, folder):
    """SDXL's config with the changes, as a file in a folder."""
    folder.mkdir(exist_ok=True)
    file = folder / "config.json"
    file.write_text(json.dumps(load_family("sdxl").unet | changes))
    return file


@pytest.mark.parametrize(("changes", "millions", "resnets", "transformers"), PRUNED)
def test_pruned_sdxl_configs_walk_and_count(tmp_path, changes, millions, resnets, transformers):
    file = configured(changes, tmp_path / "pruned")
    family = load_family(str(file))
    assert (family.title, family.size, family.folder) == ("pruned", 1024, None)
    unet = meta_unet(family)
    parts = list(iter_parts(unet))
    kinds = [part.kind for part in parts]
    assert (kinds.count("resnet"), kinds.count("transformer")) == (resnets, transformers)
    counted = flops.count(unet, (), unet_inputs(family, size=256, device="meta"), parts)
    assert round(counted.params / 1e6) == pytest.approx(millions, abs=1)
    assert sum(row.macs for row in counted.by_part.values()) == counted.total.macs
    assert counted.uncounted_ops == {}


def test_a_folder_and_its_config_file_are_the_same_unet(tmp_path):
    file = configured(KOALA_700M, tmp_path / "koala")
    by_file, by_folder = load_family(str(file)), load_family(str(tmp_path / "koala"))
    assert (by_file.unet, by_file.title, by_file.size) == (by_folder.unet, by_folder.title, by_folder.size)
    shape = topology(meta_unet(by_file))
    assert shape.blocks == ("down_blocks.0", "down_blocks.1", "down_blocks.2",
                            "up_blocks.0", "up_blocks.1", "up_blocks.2")  # fmt: skip


def test_transformers_of_one_block_may_differ_in_depth(tmp_path):
    """SSD-1B's first up block is 4, 4 and 10 layers deep: units of one block that are no twins."""
    unet = meta_unet(load_family(str(configured(SEGMIND_SSD_1B, tmp_path))))
    depths = {
        unit.fqn: len(unit.modules[0].transformer_blocks) for unit in iter_units(unet) if unit.kind == "transformer"
    }
    assert [depths[f"up_blocks.0.attentions.{i}"] for i in range(3)] == [4, 4, 10]
    assert [depths[f"up_blocks.1.attentions.{i}"] for i in range(3)] == [2, 1, 1]
    assert [depths[f"down_blocks.2.attentions.{i}"] for i in range(2)] == [4, 4]


def test_a_down_block_may_have_layers_of_its_own_number(tmp_path):
    """`layers_per_block` as a list; the mirrored up block has one more."""
    family = load_family(str(configured({"layers_per_block": [1, 2, 1]}, tmp_path)))
    units = [unit for unit in iter_units(meta_unet(family)) if unit.kind == "resnet"]
    blocks = [unit.block for unit in units]
    assert [blocks.count(f"down_blocks.{i}") for i in range(3)] == [1, 2, 1]
    assert [blocks.count(f"up_blocks.{i}") for i in range(3)] == [2, 3, 2]


def test_a_config_of_something_else_is_refused(tmp_path):
    (tmp_path / "vae.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ValueError, match="class AutoencoderKL is not supported"):
        load_family(str(tmp_path / "vae.json"))
