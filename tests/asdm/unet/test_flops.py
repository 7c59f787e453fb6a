"""MACs against the golden tables, closed forms and fvcore; memory; and what is not counted."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import nn

from asdm.models import example_inputs, loading, student
from asdm.models.components import components_of, count_call
from asdm.models.families import load_family
from asdm.plan import presets
from asdm.unet import blocks, flops
from tests.tiny import unet_args

GOLDEN = Path(__file__).parents[2] / "golden"
SD15 = json.loads((GOLDEN / "sd15_unet.json").read_text())
PUBLISHED = json.loads((GOLDEN / "published.json").read_text())["models"]


def count_meta(unet: nn.Module, parts: bool = False, **sizes: int) -> flops.Count:
    unet = unet.to("meta")
    return flops.count(unet, (), unet_args(device="meta", **sizes), list(blocks.iter_parts(unet)) if parts else ())


# ---------------------------------------------------------------------------------------------- golden


@cache
def count_sd15() -> tuple[dict[str, blocks.Part], flops.Count]:
    unet = loading.meta_unet(load_family("sd15"))
    parts = list(blocks.iter_parts(unet))
    counted = flops.count(unet, (), example_inputs.unet_inputs(load_family("sd15"), device="meta"), parts)
    return {part.fqn: part for part in parts}, counted


@pytest.mark.parametrize("fqn", SD15["units"])
def test_sd15_row_equals_the_golden_table(fqn):
    parts, counted = count_sd15()
    macs = counted.by_part[fqn]
    assert SD15["units"][fqn] == {
        "params": parts[fqn].params,
        "conv_macs": macs.conv_macs,
        "linear_macs": macs.linear_macs,
        "attention_macs": macs.attention_macs,
        "macs": macs.macs,
    }


def test_sd15_total_equals_the_golden_table():
    parts, counted = count_sd15()
    total = counted.total
    assert SD15["total"] == {
        "params": counted.params,
        "macs": total.macs,
        "flops": 2 * total.macs,
        "conv_and_linear_macs": total.conv_macs + total.linear_macs,
        "attention_macs": total.attention_macs,
    }
    assert set(parts) == set(SD15["units"])
    assert counted.by_part[blocks.OTHER].macs == 0
    assert counted.uncounted_ops == {}


@pytest.mark.parametrize("name", ["sd15", "sd21_base", "bk_sdm_base", "bk_sdm_small", "bk_sdm_tiny"])
def test_unet_total_equals_the_published_one(name):
    family = load_family(name if name.startswith("sd2") else "sd15")
    unet = loading.meta_unet(family)
    if name in presets.PRESETS:
        unet, _ = student.build(unet, student.read_plan(name, unet, family.name))
    counted = flops.count(unet, (), example_inputs.unet_inputs(family, device="meta"))
    assert {
        "latent": family.latent,
        "params": counted.params,
        "macs": counted.total.macs,
        "thop_macs": counted.thop_macs,
    } == PUBLISHED[name]


def test_text_encoder_and_vae_decoder_equal_the_published_ones():
    counted = {part.name: count_call(part) for part in components_of(load_family("sd15"))}
    text, vae = PUBLISHED["clip_l_text_encoder"], PUBLISHED["vae_decoder"]
    assert counted["text_encoder"].params == text["params"]
    assert counted["text_encoder"].total.macs == text["macs"]
    assert counted["text_encoder"].thop_macs == text["thop_macs"]
    assert counted["vae_decoder"].params == vae["params"]
    assert round(counted["vae_decoder"].total.macs, -7) == vae["macs"]  # published to 0.01 G
    assert counted["vae_decoder"].thop_macs == vae["thop_macs"]


# ---------------------------------------------------------------------------------------------- closed forms


@pytest.mark.usefixtures("nothing_left_hooked")
def test_a_resnet_is_two_convolutions_a_shortcut_and_a_time_projection(tiny_unet):
    counted = count_meta(tiny_unet, parts=True)
    macs = counted.by_part["down_blocks.1.resnets.0"]  # 32 → 64 channels at 8×8, time embedding of 4·32
    c, d, pixels, time = 32, 64, 8 * 8, 4 * 32
    assert macs.conv_macs == pixels * (9 * c * d + 9 * d * d + c * d)
    assert macs.linear_macs == time * d
    assert macs.attention_macs == 0
    unit = {part.fqn: part for part in blocks.iter_parts(tiny_unet)}["down_blocks.1.resnets.0"]
    norms, biases = 2 * c + 2 * d, 4 * d
    assert unit.params == 9 * c * d + 9 * d * d + c * d + time * d + norms + biases


def test_a_transformer_is_projections_two_attentions_and_a_gated_feed_forward(tiny_unet):
    macs = count_meta(tiny_unet, parts=True).by_part["down_blocks.0.attentions.0"]
    n, c, m, text = 16 * 16, 32, 7, 32  # image tokens, channels, text tokens, text width
    assert macs.conv_macs == 2 * n * c * c  # 1×1 convolutions in and out
    own, cross = 4 * n * c * c, 2 * n * c * c + 2 * m * text * c
    feed_forward = n * c * (2 * 4 * c) + n * (4 * c) * c  # GEGLU doubles the first
    assert macs.linear_macs == own + cross + feed_forward
    assert macs.attention_macs == 2 * n * n * c + 2 * n * m * c


def test_twice_the_batch_costs_twice(tiny_unet):
    one, two = count_meta(tiny_unet, parts=True), count_meta(tiny_unet, parts=True, batch=2)
    assert two.by_part == {fqn: macs + macs for fqn, macs in one.by_part.items()}
    assert two.total == one.total + one.total


@pytest.mark.parametrize(
    ("module", "shape", "macs"),
    [
        (nn.Conv2d(6, 10, 3, padding=1), (2, 6, 5, 7), 2 * 10 * 5 * 7 * 6 * 9),
        (nn.Conv2d(6, 10, 3, stride=2, groups=2), (1, 6, 7, 9), 10 * 3 * 4 * 3 * 9),
        (nn.ConvTranspose2d(6, 10, 2, stride=2), (1, 6, 5, 7), 6 * 5 * 7 * 10 * 4),
    ],
)
def test_a_convolution_costs_its_kernel_at_every_output(module, shape, macs):
    counted = flops.count(module.to("meta"), (torch.empty(shape, device="meta"),), {})
    assert (counted.total.conv_macs, counted.total.macs, counted.uncounted_ops) == (macs, macs, {})


def test_a_linear_layer_costs_the_same_with_and_without_bias():
    x = torch.empty(3, 5, 8, device="meta")
    for bias in (True, False):
        counted = flops.count(nn.Linear(8, 4, bias=bias, device="meta"), (x,), {})
        assert counted.total.linear_macs == 3 * 5 * 8 * 4


# ---------------------------------------------------------------------------------------------- attention


def test_plain_attention_costs_what_fused_attention_costs(tiny_unet):
    tiny_unet.set_attn_processor(AttnProcessor2_0())
    fused = count_meta(tiny_unet).total
    tiny_unet.set_attn_processor(AttnProcessor())
    plain = count_meta(tiny_unet).total
    assert fused.attention_macs > 0
    assert plain == fused


def test_attention_is_counted_on_real_tensors_too(tiny_unet):
    on_cpu = flops.count(tiny_unet, (), unet_args())
    on_meta = count_meta(tiny_unet)
    assert on_cpu.total.attention_macs == on_meta.total.attention_macs > 0
    assert on_cpu.total == on_meta.total


@pytest.mark.usefixtures("nothing_left_hooked")
def test_fvcore_agrees_on_the_tiny_unet(tiny_unet):
    class OneTensor(nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = tiny_unet

        def forward(self, sample, timestep, states):
            return self.unet(sample, timestep, states, return_dict=False)[0]

    inputs = unet_args()
    args = (inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"])
    assert flops.count_by_fvcore(OneTensor(), args) == count_meta(tiny_unet).total


# ---------------------------------------------------------------------------------------------- what is not counted


class Calls(nn.Module):
    """A module that calls one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (torch.fft.fft2, "fft"),
        (torch.linalg.inv, "inv"),
        (lambda x: torch.mv(x, x[0]), "mv"),
        (lambda x: torch.nn.functional.interpolate(x[None, None], scale_factor=2, mode="bicubic"), "bicubic"),
    ],
)
def test_an_unknown_operator_is_listed_and_not_silently_free(function, operator):
    counted = flops.count(Calls(function), (torch.empty(8, 8, device="meta"),), {})
    assert sum(operator in name for name in counted.uncounted_ops) == 1
    assert counted.total.macs == 0


@pytest.mark.parametrize(
    "function", [torch.relu, torch.Tensor.t, lambda x: torch.cat([x, x]), torch.nn.functional.gelu]
)
def test_what_is_free_by_convention_is_not_listed(function):
    counted = flops.count(Calls(function), (torch.empty(8, 8, device="meta"),), {})
    assert (counted.total.macs, counted.uncounted_ops) == (0, {})


@pytest.mark.usefixtures("nothing_left_hooked")
def test_an_error_in_the_counted_call_leaves_no_hooks(tiny_unet):
    parts, wrong = list(blocks.iter_parts(tiny_unet)), unet_args() | {"encoder_hidden_states": torch.zeros(1, 7, 33)}
    with pytest.raises(RuntimeError):
        flops.count(tiny_unet, (), wrong, parts)
    assert flops.count(tiny_unet, (), unet_args(), parts).total.macs > 0


# ---------------------------------------------------------------------------------------------- memory


def test_a_chain_holds_two_activations_at_a_time():
    chain = nn.Sequential(*(nn.ReLU() for _ in range(5)))
    counted = flops.count(chain, (torch.empty(1000, device="meta"),), {})
    assert counted.peak_activation_bytes == 2 * 1000 * 4


def test_shared_weights_are_counted_once():
    first = nn.Linear(10, 10, bias=False, device="meta")
    counted = flops.count(nn.Sequential(first, nn.ReLU(), first), (torch.empty(1, 10, device="meta"),), {})
    assert (counted.params, counted.parameter_bytes) == (10 * 10, 10 * 10 * 4)
    assert counted.total.linear_macs == 2 * 10 * 10


@pytest.mark.usefixtures("nothing_left_hooked")
def test_peak_memory_is_weights_and_live_activations(tiny_unet):
    one, four = count_meta(tiny_unet, parts=True), count_meta(tiny_unet, parts=True, batch=4)
    assert one.parameter_bytes == 4 * one.params == four.parameter_bytes
    assert one.peak_memory_bytes == one.parameter_bytes + one.peak_activation_bytes > one.parameter_bytes
    assert four.peak_activation_bytes > 3 * one.peak_activation_bytes
    assert all(one.peak_by_part[part.fqn] > 0 for part in blocks.iter_parts(tiny_unet))
    assert one.peak_activation_bytes == max(one.peak_by_part.values())


def test_bf16_weights_take_half_the_bytes(tiny_unet):
    full, half = count_meta(tiny_unet), flops.count(
        tiny_unet.to("meta", torch.bfloat16),
        (),
        {k: v.bfloat16() if torch.is_tensor(v) else v for k, v in unet_args(device="meta").items()},
    )  # fmt: skip
    assert 2 * half.parameter_bytes == full.parameter_bytes
    assert half.total == full.total


def test_attention_of_one_query_on_a_batch_of_keys_counts_the_batch():
    assert flops.attention_macs((1, 2, 5, 8), (4, 2, 7, 8), (4, 2, 7, 8)) == 4 * 2 * 5 * 7 * (8 + 8)
