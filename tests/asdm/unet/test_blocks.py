"""Block → layer → unit: what is found in a UNet, in which order, and what feeds what."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from asdm.models.example_inputs import unet_inputs
from asdm.models.families import load_family
from asdm.models.loading import meta_unet
from asdm.unet import blocks, flops
from asdm.unet.replacements.pass_through import TransformerPassThrough
from tests.tiny import hooks_on, make_unet, run, unet_args


def kinds(unet):
    return Counter(unit.kind for unit in blocks.iter_units(unet))


# ---------------------------------------------------------------------------------------------- what is found


def test_sd15_has_38_units(sd15_meta):
    # (2 layers + 3 layers) × 4 levels + 2 in the middle; attention at the three shallow levels and in the middle.
    assert kinds(sd15_meta) == {"resnet": (2 + 3) * 4 + 2, "transformer": (2 + 3) * 3 + 1}
    assert 22 + 16 == len(list(blocks.iter_units(sd15_meta))) == 38


@pytest.mark.parametrize("family", ["sd21", "sd21_base"])
def test_sd2_has_the_same_units_as_sd15(family, sd15_meta):
    names = [unit.fqn for unit in blocks.iter_units(meta_unet(load_family(family)))]
    assert names == [unit.fqn for unit in blocks.iter_units(sd15_meta)]


def test_sdxl_has_no_transformer_at_its_first_level_and_deep_ones_below():
    found = list(blocks.iter_units(meta_unet(load_family("sdxl"))))
    depth = {
        unit.fqn: len(list(blocks.self_attentions(unit.modules[0]))) for unit in found if unit.kind == "transformer"
    }
    assert Counter(unit.kind for unit in found) == {"resnet": (2 + 3) * 3 + 2, "transformer": (2 + 3) * 2 + 1}
    assert not [fqn for fqn in depth if fqn.startswith(("down_blocks.0", "up_blocks.2"))]
    assert depth == {
        "down_blocks.1.attentions.0": 2, "down_blocks.1.attentions.1": 2,
        "down_blocks.2.attentions.0": 10, "down_blocks.2.attentions.1": 10,
        "mid_block.attentions.0": 10,
        "up_blocks.0.attentions.0": 10, "up_blocks.0.attentions.1": 10, "up_blocks.0.attentions.2": 10,
        "up_blocks.1.attentions.0": 2, "up_blocks.1.attentions.1": 2, "up_blocks.1.attentions.2": 2,
    }  # fmt: skip


def test_a_unit_of_sd15_has_one_self_attention_and_a_resnet_none(tiny_unet):
    block = tiny_unet.down_blocks[0]
    assert [name for _, name in blocks.self_attentions(block.attentions[0])] == ["attn1"]
    assert list(blocks.self_attentions(block.resnets[0])) == []


def test_a_unet_without_mid_block_has_three_units_less():
    assert kinds(make_unet(mid_block_type=None)) == {"resnet": 22 - 2, "transformer": 16 - 1}


def test_layers_per_block_may_differ_from_block_to_block():
    unet = make_unet(layers_per_block=[1, 2, 1, 2])  # an up block has one layer more than its mirrored down block
    shape = blocks.topology(unet)
    assert [len(shape.layers(block)) for block in shape.down_blocks] == [1, 2, 1, 2]
    assert [len(shape.layers(block)) for block in shape.up_blocks] == [2 + 1, 1 + 1, 2 + 1, 1 + 1]
    assert kinds(unet) == {
        "resnet": (1 + 2 + 1 + 2) + 2 + (3 + 2 + 3 + 2),
        "transformer": (1 + 2 + 1) + 1 + (2 + 3 + 2),
    }


def test_a_pass_through_is_a_gap_and_its_neighbours_keep_their_numbers(tiny_unet):
    before = [unit.fqn for unit in blocks.iter_units(tiny_unet)]
    tiny_unet.set_submodule("down_blocks.0.attentions.0", TransformerPassThrough())
    after = [unit.fqn for unit in blocks.iter_units(tiny_unet)]
    assert set(before) - set(after) == {"down_blocks.0.attentions.0"}
    assert "down_blocks.0.attentions.1" in after
    assert len(before) - len(after) == 1


# ---------------------------------------------------------------------------------------------- names and order


@pytest.mark.usefixtures("nothing_left_hooked")
def test_units_come_in_the_order_in_which_a_forward_runs_them(tiny_unet):
    found = list(blocks.iter_units(tiny_unet))
    ran: list[str] = []
    with blocks.hooked(found, before=ran.append, after=lambda _: None):
        run(tiny_unet)
    assert ran == [unit.fqn for unit in found]


@pytest.mark.usefixtures("nothing_left_hooked")
def test_every_part_runs_once_and_none_inside_another(tiny_unet):
    found = list(blocks.iter_parts(tiny_unet))
    starts, open_parts, deepest = Counter(), [], 0

    def before(fqn):
        nonlocal deepest
        starts[fqn] += 1
        open_parts.append(fqn)
        deepest = max(deepest, len(open_parts))

    with blocks.hooked(found, before, after=lambda fqn: open_parts.remove(fqn)):
        run(tiny_unet)
    assert starts == {part.fqn: len(part.modules) for part in found}
    assert deepest == 1


@pytest.mark.parametrize(
    ("fqn", "label"),
    [
        ("down_blocks.0.resnets.0", "dn0.r0"),
        ("down_blocks.2.attentions.1", "dn2.t1"),
        ("mid_block.resnets.1", "mid.r1"),
        ("up_blocks.3.attentions.2", "up3.t2"),
        ("down_blocks.1.downsamplers.0", "dn1.down"),
        ("up_blocks.0.upsamplers.0", "up0.up"),
        ("conv_in", "conv_in"),
        ("time_embedding", "time_embedding"),
        ("conv_out", "conv_out"),
    ],
)
def test_labels(sd15_meta, fqn, label):
    assert {part.fqn: part.label for part in blocks.iter_parts(sd15_meta)}[fqn] == label


def test_every_name_of_a_part_leads_to_its_module_and_no_label_is_used_twice(sd15_meta):
    parts = list(blocks.iter_parts(sd15_meta))
    assert all(sd15_meta.get_submodule(part.fqn) is part.modules[-1] for part in parts)
    assert len({part.label for part in parts}) == len({part.fqn for part in parts}) == len(parts)


# ---------------------------------------------------------------------------------------------- sums


def test_parts_and_the_rest_are_the_whole(sd15_meta):
    parts = list(blocks.iter_parts(sd15_meta))
    inputs = unet_inputs(load_family("sd15"), device="meta")
    whole, rows = flops.count(sd15_meta, (), inputs).total, flops.count(sd15_meta, (), inputs, parts).by_part
    assert set(rows) == {part.fqn for part in parts} | {blocks.OTHER}
    assert sum(row.macs for row in rows.values()) == whole.macs
    assert sum(part.params for part in parts) == sum(p.numel() for p in sd15_meta.parameters())


def test_what_sdxl_runs_outside_its_parts_is_the_added_embedding():
    unet = meta_unet(load_family("sdxl"))
    parts = list(blocks.iter_parts(unet))
    rest = sum(p.numel() for p in unet.parameters()) - sum(part.params for part in parts)
    assert rest == (2816 + 1) * 1280 + (1280 + 1) * 1280  # two linear layers with bias
    counted = flops.count(unet, (), unet_inputs(load_family("sdxl"), device="meta"), parts)
    assert counted.by_part[blocks.OTHER].linear_macs == 2816 * 1280 + 1280 * 1280


# ---------------------------------------------------------------------------------------------- skips and channels


def test_skips_lead_from_the_down_path_to_its_mirror(sd15_meta):
    pairs = blocks.skip_pairs(sd15_meta)
    assert len(pairs) == 4 * 3  # each up block takes three
    assert pairs[0] == ("down_blocks.3.layer.1", "up_blocks.0.resnets.0")
    assert pairs[-3:] == [
        ("down_blocks.0.layer.1", "up_blocks.3.resnets.0"),
        ("down_blocks.0.layer.0", "up_blocks.3.resnets.1"),
        ("conv_in", "up_blocks.3.resnets.2"),
    ]
    for producer, consumer in pairs:
        level = 0 if producer == "conv_in" else int(producer.split(".")[1]) + ("downsamplers" in producer)
        assert consumer.startswith(f"up_blocks.{3 - level}."), producer


@torch.no_grad()
def test_what_the_producer_of_a_skip_makes_is_what_its_consumer_gets(tiny_unet):
    made, got, handles = {}, {}, []
    for producer, consumer in blocks.skip_pairs(tiny_unet):
        name = producer
        if ".layer." in producer:
            block = tiny_unet.get_submodule(producer.partition(".layer.")[0])
            name = producer.replace(".layer.", ".attentions." if hasattr(block, "attentions") else ".resnets.")

        def keep_output(_module, _args, output, name=producer):
            made[name] = output[0] if isinstance(output, tuple) else output

        def keep_input(_module, args, name=consumer):
            got[name] = args[0]

        handles.append(tiny_unet.get_submodule(name).register_forward_hook(keep_output))
        handles.append(tiny_unet.get_submodule(consumer).register_forward_pre_hook(keep_input))
    tiny_unet(**unet_args())
    for handle in handles:
        handle.remove()
    for producer, consumer in blocks.skip_pairs(tiny_unet):
        skip = made[producer]
        assert torch.equal(got[consumer][:, -skip.shape[1] :], skip), (producer, consumer)


def test_topology_knows_the_channels_of_every_unit(sd15_meta):
    shape = blocks.topology(sd15_meta)
    channels = {unit.fqn: (unit.channels_in, unit.channels_out) for unit in shape.units}
    assert shape.channels_stem == 320
    assert channels["down_blocks.0.resnets.0"] == (320, 320)
    assert channels["down_blocks.1.resnets.0"] == (320, 640)
    assert channels["mid_block.attentions.0"] == (1280, 1280)
    # An up layer takes what comes from below beside its skip.
    assert channels["up_blocks.0.resnets.0"] == (1280 + 1280, 1280)
    assert channels["up_blocks.3.resnets.0"] == (640 + 320, 320)
    assert channels["up_blocks.3.resnets.1"] == channels["up_blocks.3.resnets.2"] == (320 + 320, 320)


def test_topology_knows_samplers_and_mirrors(tiny_unet):
    shape = blocks.topology(tiny_unet)
    assert shape.samplers == {
        **{f"down_blocks.{i}": f"down_blocks.{i}.downsamplers.0" for i in (0, 1, 2)},
        **{f"up_blocks.{i}": f"up_blocks.{i}.upsamplers.0" for i in (0, 1, 2)},
    }
    for i in range(4):
        assert shape.mirror(f"down_blocks.{i}") == f"up_blocks.{3 - i}"
        assert shape.mirror(f"up_blocks.{3 - i}") == f"down_blocks.{i}"


# ---------------------------------------------------------------------------------------------- hooks


@pytest.mark.usefixtures("nothing_left_hooked")
def test_hooked_calls_before_and_after_each_part(tiny_unet):
    parts, calls = list(blocks.iter_units(tiny_unet))[:2], []
    with blocks.hooked(parts, lambda fqn: calls.append(("in", fqn)), lambda fqn: calls.append(("out", fqn))):
        assert len(hooks_on(tiny_unet)) == 2
        run(tiny_unet)
    assert calls == [(side, part.fqn) for part in parts for side in ("in", "out")]


@pytest.mark.usefixtures("nothing_left_hooked")
def test_an_error_in_a_hooked_forward_leaves_nothing_behind(tiny_unet):
    def fail(_fqn):
        raise RuntimeError("the forward broke")

    with (
        pytest.raises(RuntimeError, match="the forward broke"),
        blocks.hooked(list(blocks.iter_parts(tiny_unet)), fail, fail),
    ):
        run(tiny_unet)
    assert hooks_on(tiny_unet) == {}


@pytest.mark.usefixtures("nothing_left_hooked")
def test_an_error_while_hooking_leaves_nothing_behind(tiny_unet):
    unhookable = blocks.Part("nothing", "nothing", "glue", "", None, (None,))
    with (
        pytest.raises(AttributeError),
        blocks.hooked([*blocks.iter_units(tiny_unet), unhookable], lambda _: None, lambda _: None),
    ):
        pytest.fail("a part without a module was hooked")
    assert hooks_on(tiny_unet) == {}
