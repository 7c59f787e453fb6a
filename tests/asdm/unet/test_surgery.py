"""Surgery on a real UNet: count before, count after, and know where every weight came from."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from asdm.plan.edits import RemoveBlock, RemoveLayer, RemoveUnit, ReplaceUnit
from asdm.unet import blocks
from asdm.unet.replacements.gri_attention import GRIAttention
from asdm.unet.surgery import apply_plan, resolved_on, swapped
from tests.tiny import hooks_on, make_unet, run

MID, DEEPEST = RemoveBlock(block="mid_block"), RemoveBlock(block="down_blocks.3")
FIRST_DOWN_SECOND_UP = (RemoveLayer(block="down_blocks.0", layer=0), RemoveLayer(block="up_blocks.3", layer=1))


def gri(unit: str, **options) -> ReplaceUnit:
    return ReplaceUnit(unit=unit, with_="gri_attention", options=options)


def kinds(unet):
    return Counter(unit.kind for unit in blocks.iter_units(unet))


def teacher_name(name: str, name_map: dict[str, str]) -> str:
    """Where a student's parameter comes from: the longest part or block that its name begins with, translated."""
    at = max((part for part in name_map if name.startswith(f"{part}.")), key=len, default=None)
    return name if at is None else name_map[at] + name[len(at) :]


@pytest.mark.parametrize(
    ("edits", "resnets", "transformers"),
    [
        ([], 22, 16),
        (FIRST_DOWN_SECOND_UP, 22 - 2, 16 - 2),
        ([RemoveUnit(unit="mid_block.attentions.0")], 22, 16 - 1),
        ([RemoveUnit(unit="mid_block.resnets.1"), RemoveUnit(unit="down_blocks.0.resnets.0")], 22 - 2, 16),
        ([MID], 22 - 2, 16 - 1),
        ([MID, DEEPEST], 22 - 2 - 2 - 3, 16 - 1),
        ([gri("down_blocks.0.attentions.0"), gri("up_blocks.3.attentions.2")], 22, 16),
    ],
    ids=["nothing", "pair of layers", "transformer", "resnets", "middle", "deepest pair", "replaced"],
)
def test_units_before_and_after(tiny_unet, edits, resnets, transformers):
    assert kinds(tiny_unet) == {"resnet": 22, "transformer": 16}
    applied = apply_plan(tiny_unet, resolved_on(tiny_unet, edits))
    assert kinds(tiny_unet) == {"resnet": resnets, "transformer": transformers}
    units_gone = [fqn for fqn in applied.removed if "samplers" not in fqn]
    assert len(units_gone) == 38 - resnets - transformers
    assert run(tiny_unet).shape == (1, 4, 16, 16)


@pytest.mark.parametrize(
    "edits",
    [
        FIRST_DOWN_SECOND_UP,
        [MID, DEEPEST],
        [*FIRST_DOWN_SECOND_UP, MID, RemoveUnit(unit="down_blocks.1.attentions.0"), gri("up_blocks.3.attentions.2")],
    ],
    ids=["renumbered layers", "renumbered blocks", "everything"],
)
def test_every_parameter_of_the_student_is_the_teachers_under_the_map(tiny_unet, edits):
    before = dict(tiny_unet.named_parameters())
    applied = apply_plan(tiny_unet, resolved_on(tiny_unet, edits))
    after = dict(tiny_unet.named_parameters())
    assert {name: id(p) for name, p in after.items()} == {
        name: id(before[teacher_name(name, applied.name_map)]) for name in after
    }
    gone = {name for name in before if any(name.startswith(f"{part}.") for part in applied.removed)}
    assert len(after) == len(before) - len(gone)


def test_the_map_tells_where_a_renumbered_layer_came_from(tiny_unet):
    applied = apply_plan(tiny_unet, resolved_on(tiny_unet, FIRST_DOWN_SECOND_UP))
    assert {student: teacher for student, teacher in applied.name_map.items() if student != teacher} == {
        "down_blocks.0.resnets.0": "down_blocks.0.resnets.1",
        "down_blocks.0.attentions.0": "down_blocks.0.attentions.1",
        "up_blocks.3.resnets.1": "up_blocks.3.resnets.2",
        "up_blocks.3.attentions.1": "up_blocks.3.attentions.2",
    }
    assert applied.removed == (
        "down_blocks.0.resnets.0", "down_blocks.0.attentions.0", "up_blocks.3.resnets.1", "up_blocks.3.attentions.1",
    )  # fmt: skip


def test_the_map_tells_where_a_renumbered_block_came_from(tiny_unet):
    applied = apply_plan(tiny_unet, resolved_on(tiny_unet, [MID, DEEPEST]))
    assert [applied.name_map[f"up_blocks.{i}"] for i in range(3)] == ["up_blocks.1", "up_blocks.2", "up_blocks.3"]
    assert applied.name_map["up_blocks.0.upsamplers.0"] == "up_blocks.1.upsamplers.0"
    assert {"down_blocks.2.downsamplers.0", "up_blocks.0.upsamplers.0"} < set(applied.removed)
    assert not {"mid_block", "down_blocks.3", "up_blocks.3"} & set(applied.name_map)


def test_edits_speak_the_teachers_names_in_any_order(tiny_unet):
    """A replacement behind a removed layer lands on the unit that was named, not on the one that moved up."""
    wanted = tiny_unet.up_blocks[3].attentions[2].transformer_blocks[0].attn1.to_q.weight
    applied = apply_plan(tiny_unet, resolved_on(tiny_unet, [*FIRST_DOWN_SECOND_UP, gri("up_blocks.3.attentions.2")]))
    found = [(name, m) for name, m in tiny_unet.named_modules() if isinstance(m, GRIAttention)]
    assert [name for name, _ in found] == ["up_blocks.3.attentions.1.transformer_blocks.0.attn1"]
    assert found[0][1].to_q.weight is wanted
    assert applied.replaced == {"up_blocks.3.attentions.2": "gri_attention"}
    assert applied.name_map["up_blocks.3.attentions.1"] == "up_blocks.3.attentions.2"


def test_an_empty_plan_changes_nothing(tiny_unet):
    names, ids, hooks, before = (
        list(tiny_unet.state_dict()),
        {*map(id, tiny_unet.modules())},
        hooks_on(tiny_unet),
        run(tiny_unet),
    )
    applied = apply_plan(tiny_unet, resolved_on(tiny_unet, []))
    assert (list(tiny_unet.state_dict()), {*map(id, tiny_unet.modules())}, hooks_on(tiny_unet)) == (names, ids, hooks)
    assert torch.equal(run(tiny_unet), before)
    assert (applied.removed, applied.replaced) == ((), {})
    assert all(student == teacher for student, teacher in applied.name_map.items())
    assert len(applied.name_map) == 38 + 3 + 6 + 9  # units, stem + time + head, samplers, blocks


def test_an_identity_lets_the_feature_map_through(tiny_unet):
    """Without the middle block's three units, the middle block is the identity that removing it makes."""
    whole = make_unet()
    apply_plan(whole, resolved_on(whole, [MID]))
    apply_plan(
        tiny_unet,
        resolved_on(
            tiny_unet, [RemoveUnit(unit=f"mid_block.{unit}") for unit in ("resnets.0", "attentions.0", "resnets.1")]
        ),
    )
    assert torch.equal(run(tiny_unet), run(whole))


@pytest.mark.parametrize("size", [(16, 24), (24, 16)])
def test_a_student_takes_images_that_are_not_square(tiny_unet, size):
    apply_plan(tiny_unet, resolved_on(tiny_unet, [*FIRST_DOWN_SECOND_UP, gri("up_blocks.3.attentions.0")]))
    assert run(tiny_unet, height=size[0], width=size[1]).shape == (1, 4, *size)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (gri("mid_block.resnets.0"), ["replace mid_block.resnets.0 with gri_attention", "does not apply"]),
        (
            ReplaceUnit(unit="down_blocks.1.resnets.0", with_="pass_through"),
            ["down_blocks.1.resnets.0", "does not apply"],
        ),
        (ReplaceUnit(unit="mid_block.attentions.0", with_="gri"), ["'gri'", "gri_attention", "pass_through"]),
        (gri("mid_block.attentions.0", phases=9), ["replace mid_block.attentions.0", "phases"]),
        (RemoveUnit(unit="down_blocks.7.resnets.0"), ["'down_blocks.7.resnets.0'", "choose from"]),
        (RemoveLayer(block="down_blocks.0", layer=1), ["up_blocks.3"]),
    ],
)
def test_surgery_complains_when_an_edit_does_nothing_or_does_not_fit(tiny_unet, edit, words):
    before = {*map(id, tiny_unet.modules())}
    with pytest.raises(ValueError, match=r"\.$") as caught:
        apply_plan(tiny_unet, resolved_on(tiny_unet, [edit]))
    assert [word for word in words if word not in str(caught.value)] == []
    assert {*map(id, tiny_unet.modules())} == before


def test_an_edit_that_is_refused_by_legality_leaves_the_unet_whole_whatever_stands_before_it(tiny_unet):
    before = run(tiny_unet)
    with pytest.raises(ValueError, match="mirrored"):
        apply_plan(
            tiny_unet,
            resolved_on(tiny_unet, [gri("mid_block.attentions.0"), RemoveLayer(block="down_blocks.0", layer=0)]),
        )
    assert torch.equal(run(tiny_unet), before)


def test_swapped_modules_go_back_even_after_an_error(tiny_unet):
    fqn, before = "mid_block.attentions.0", run(tiny_unet)
    original, other = tiny_unet.get_submodule(fqn), make_unet(seed=1).get_submodule(fqn)
    with swapped(tiny_unet, {fqn: other}):
        assert tiny_unet.get_submodule(fqn) is other
        assert not torch.equal(run(tiny_unet), before)
    with pytest.raises(KeyError), swapped(tiny_unet, {fqn: other}):
        raise KeyError
    assert tiny_unet.get_submodule(fqn) is original
    assert torch.equal(run(tiny_unet), before)


def test_two_layers_of_one_block_may_go_and_the_right_ones_stay():
    unet = make_unet(layers_per_block=3)
    first, last = unet.down_blocks[0].resnets[0], unet.up_blocks[3].resnets[3]
    edits = [RemoveLayer(block="down_blocks.0", layer=i) for i in (1, 2)]
    edits += [RemoveLayer(block="up_blocks.3", layer=i) for i in (1, 2)]
    applied = apply_plan(unet, resolved_on(unet, edits))
    assert (list(unet.down_blocks[0].resnets), unet.up_blocks[3].resnets[1]) == ([first], last)
    assert applied.name_map["up_blocks.3.attentions.1"] == "up_blocks.3.attentions.3"
    assert len(applied.removed) == 2 * 4
    assert run(unet).shape == (1, 4, 16, 16)


def test_a_refused_replacement_leaves_the_unet_whole(tiny_unet):
    """The second edit does not apply; the first must not stay."""
    before = [id(module) for module in tiny_unet.modules()]
    edits = [ReplaceUnit(unit=f"mid_block.{part}.0", with_="gri_attention") for part in ("attentions", "resnets")]
    with pytest.raises(ValueError, match="does not apply to this unit"):
        apply_plan(tiny_unet, resolved_on(tiny_unet, edits))
    assert [id(module) for module in tiny_unet.modules()] == before
