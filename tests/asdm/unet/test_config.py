"""UNet configs of every conditioning are counted right, and those of other classes are refused in one sentence."""

import json
from pathlib import Path

import pytest
import torch

from asdm.models.families import load_family
from asdm.models.loading import meta_unet
from asdm.unet import config, flops, inputs
from asdm.utils import console
from asdm_prof.profiler import costs
from tests.commands import refused

CONFIGS = Path(__file__).parents[2] / "fixtures" / "configs"
EXPECTED = json.loads((CONFIGS / "expected.json").read_text())
COUNTED = sorted(name for name, case in EXPECTED.items() if "params" in case)
UPSCALER = json.loads((CONFIGS / "class-labels-upscaler" / "config.json").read_text())


@pytest.fixture(autouse=True)
def _say_it_again():
    console.say_once.cache_clear()


@pytest.mark.parametrize("name", COUNTED)
def test_parameters_and_macs_equal_the_closed_form(name):
    counted = costs.flops_of(str(CONFIGS / name / "config.json"))
    assert {key: counted["total"][key] for key in ("params", "macs")} == {
        key: EXPECTED[name][key] for key in ("params", "macs")
    }
    assert counted["uncounted_ops"] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *[
            (f"class-{kind}", (f"class {cls} is not supported; choose", "UNet2DConditionModel"))
            for kind, cls in {
                "controlnet": "ControlNetModel",
                "unet2d-unconditional": "UNet2DModel",
                "unet3d": "UNet3DConditionModel",
                "motion": "UNetMotionModel",
                "spatiotemporal": "UNetSpatioTemporalConditionModel",
                "cascade": "StableCascadeUNet",
                "flux": "FluxTransformer2DModel",
            }.items()
        ],
        ("git-conflict", ("line 1 is a git conflict marker",)),
        ("heads-list-too-short", ("attention_head_dim has 2 entries for 4 blocks",)),
        ("widths-not-in-groups", ("block_out_channels", "norm_num_groups 32", "[32, 64, 128, 128]")),
        ("asymmetric-depths-without-reverse", ("reverse_transformer_layers_per_block",)),
    ],
)
def test_what_is_no_unet_of_ours_is_refused_in_one_sentence(name, words, run):
    refused(run("asdm-prof", "flops", CONFIGS / name / "config.json", "--json"), name, *words)


def test_every_case_is_tested():
    here = {path.parent.name for path in CONFIGS.glob("*/config.json")}
    assert here == set(EXPECTED)
    assert len([name for name, case in EXPECTED.items() if "refused" in case]) == 7 + 4


def test_stray_keys_are_named_once_and_written_nowhere(capfd):
    stray = ("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup")
    file = str(CONFIGS / "stray-ema-keys" / "config.json")
    families = [load_family(file), load_family(file)]
    said = [line for line in capfd.readouterr().err.splitlines() if "not settings of a UNet" in line]
    assert len(said) == 1
    assert f"ignoring {', '.join(stray)}," in said[0]
    unet = meta_unet(families[1])
    assert not {*stray} & {*families[1].unet, *unet.config}


def test_gligen_says_that_its_gated_attention_does_not_run(capfd):
    counted = costs.flops_of(str(CONFIGS / "gated-gligen" / "config.json"))
    assert "does not run without grounding inputs" in counted["note"]
    assert counted["note"] in capfd.readouterr().err
    assert config.note(load_family("sd15").unet) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_out_channels": 320}, "block_out_channels must list the widths of 1 to 16 blocks, got 320"),
        ({"block_out_channels": [32, 64, "64", 128]}, "block_out_channels must list"),
        ({"layers_per_block": 2000}, "layers_per_block must be numbers from 0 to 64, got 2000"),
        ({"layers_per_block": [2, 2, 2]}, "layers_per_block has 3 entries for 4 blocks"),
        ({"attention_head_dim": None}, "attention_head_dim must be a number of at least 1 or a list of them, got None"),
        ({"num_attention_heads": 8}, "num_attention_heads must be null, got 8"),
        ({"in_channels": "4"}, "in_channels must be a number of at least 1, got '4'"),
        (
            {"class_embed_type": "projection"},
            "class_embed_type 'projection' needs projection_class_embeddings_input_dim",
        ),
        ({"addition_embed_type": "text_time"}, "addition_embed_type 'text_time' needs addition_time_embed_dim"),
        ({"down_block_types": ["DownBlock3D"] * 4}, "diffusers cannot build a UNet of .*DownBlock3D"),
        ({"act_fn": 3}, "diffusers cannot build a UNet of"),
    ],
)
def test_values_that_no_unet_has_are_named(tmp_path, changes, words):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(UPSCALER | changes))
    with pytest.raises(ValueError, match=words) as caught:
        meta_unet(load_family(str(file)))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- full size

SD15, SDXL = load_family("sd15").unet, load_family("sdxl").unet
UPSCALER_X4 = UPSCALER | {"block_out_channels": [256, 512, 512, 1024], "cross_attention_dim": 1024,
                          "attention_head_dim": 8, "sample_size": 128}  # fmt: skip
LCM = SD15 | {"time_cond_proj_dim": 256}
KOLORS = SDXL | {
    "transformer_layers_per_block": [0, 2, 10], "encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj",
    "projection_class_embeddings_input_dim": 5632,
}  # fmt: skip
REFINER = SDXL | {
    "block_out_channels": [384, 768, 1536, 1536], "attention_head_dim": [6, 12, 24, 24], "cross_attention_dim": 1280,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": 4, "projection_class_embeddings_input_dim": 2560,
}  # fmt: skip
KANDINSKY = json.loads((CONFIGS / "image-proj-kandinsky-2-2" / "config.json").read_text()) | {
    "block_out_channels": [384, 768, 1152, 1536], "layers_per_block": 3, "attention_head_dim": 64,
    "cross_attention_dim": 768, "encoder_hid_dim": 1280, "norm_num_groups": 32, "sample_size": 64,
}  # fmt: skip


def test_lcm_is_sd15_with_a_projection_of_its_guidance_embedding():
    plain, lcm = counted(SD15), counted(LCM)
    assert lcm.params - plain.params == lcm.total.macs - plain.total.macs == 256 * 320


def test_inpainting_costs_five_channels_more_in_the_first_convolution():
    inpainting = counted(SD15 | {"in_channels": 9})
    assert inpainting.params == 859_520_964 + 5 * 9 * 320
    assert inpainting.total.macs - counted(SD15).total.macs == 5 * 9 * 320 * 64 * 64
    assert round(inpainting.total.macs / 1e6) == 401_696  # of an independent closed form


@pytest.mark.parametrize(
    ("unet", "millions", "giga_macs"),
    [
        pytest.param(REFINER, 2_260, 3_643.005, id="SDXL refiner"),
        pytest.param(UPSCALER_X4, 473, None, id="SD x4 upscaler"),
        pytest.param(KOLORS, 2_579, None, id="Kolors"),
        pytest.param(KANDINSKY, 1_254, None, id="Kandinsky 2.2 decoder"),
    ],
)
def test_full_size_public_configs(unet, millions, giga_macs):
    """Millions of parameters as published (cards and papers), MACs of an independent closed form where there is one."""
    count = counted(unet)
    assert count.params / 1e6 == pytest.approx(millions, rel=2e-3)
    assert count.uncounted_ops == {}
    if giga_macs:
        assert round(count.total.macs / 1e6) == round(giga_macs * 1e3)


def counted(unet):
    with torch.device("meta"):
        from diffusers import UNet2DConditionModel

        model = UNet2DConditionModel.from_config(unet).eval()
    side = unet["sample_size"]
    return flops.count(model, (), inputs.forward_inputs(unet, 1, (side, side), 77, meta_tensor, "meta"))


def meta_tensor(*shape):
    return torch.empty(shape, device="meta")


# ---------------------------------------------------------------------------------------------- inputs


def shapes_of(unet):
    made = inputs.forward_inputs(unet, 2, (8, 12), 77, meta_tensor, "meta")
    added = made.pop("added_cond_kwargs", {})
    return {name: tuple(value.shape) for name, value in (made | added).items() if isinstance(value, torch.Tensor)}


def test_a_call_gets_what_its_config_asks_for():
    plain = {"sample": (2, 4, 8, 12), "timestep": (2,), "encoder_hidden_states": (2, 77, 768)}
    assert shapes_of(SD15) == plain
    assert shapes_of(LCM) == plain | {"timestep_cond": (2, 256)}
    assert shapes_of(UPSCALER_X4)["class_labels"] == (2,)
    kolors, refiner, kandinsky = shapes_of(KOLORS), shapes_of(REFINER), shapes_of(KANDINSKY)
    assert kolors["encoder_hidden_states"] == (2, 77, 4096)
    assert (kolors["text_embeds"], kolors["time_ids"]) == ((2, 4096), (2, 6))
    assert (refiner["text_embeds"], refiner["time_ids"]) == ((2, 1280), (2, 5))
    assert (shapes_of(SDXL)["text_embeds"], shapes_of(SDXL)["time_ids"]) == ((2, 1280), (2, 6))
    assert (kandinsky["image_embeds"], "encoder_hidden_states" in kandinsky) == ((2, 1280), False)


def test_a_hint_is_an_image_and_its_embedding_is_part_of_the_first_convolution():
    hinted = json.loads((CONFIGS / "image-hint-kandinsky-controlnet" / "config.json").read_text())
    assert shapes_of(hinted)["sample"] == (2, hinted["in_channels"] - 4, 8, 12)
    assert shapes_of(hinted)["hint"] == (2, 3, 64, 96)


def test_what_captions_alone_cannot_condition_is_named():
    for unet in (SD15, SDXL):
        inputs.check_caption_only(unet, "x", "asdm distill")
    for unet, words in (
        (SD15 | {"in_channels": 9}, r"an image beside the latents \(in_channels 9\)"),
        (SD15 | {"in_channels": 8}, r"an image beside the latents \(in_channels 8\)"),
        (LCM, r"a guidance embedding \(time_cond_proj_dim 256\)"),
        (REFINER, r"added conditions \(addition_embed_type text_time\)"),
        (SD15 | {"num_class_embeds": 10}, r"class labels \(num_class_embeds 10\)"),
        (KANDINSKY, r"added conditions \(addition_embed_type image\)"),
    ):
        with pytest.raises(ValueError, match=f"asdm distill supports UNets .* x's also takes {words}"):
            inputs.check_caption_only(unet, "x", "asdm distill")
    for unet in (SDXL, LCM, KOLORS):
        inputs.check_caption_only(unet, "x", "asdm generate", by_pipeline=True)
