"""Plans as files, and which edits a UNet can take."""

from __future__ import annotations

import json
import math
from itertools import chain

import pytest
from hypothesis import HealthCheck, event, given, settings, strategies as st

from asdm.plan.edits import (
    Prediction,
    Proof,
    PruningPlan,
    RemoveBlock,
    RemoveLayer,
    RemoveUnit,
    ReplaceUnit,
    parse_edits,
)
from asdm.plan.legality import is_legal_flow, resolve
from asdm.unet import blocks as units
from asdm.unet.replacements import shared_copy
from asdm.unet.surgery import apply_plan, resolved_on
from tests.tiny import make_unet, run

SHALLOW_PAIR = (RemoveLayer(block="down_blocks.0", layer=1), RemoveLayer(block="up_blocks.3", layer=1))
MID, DEEPEST = RemoveBlock(block="mid_block"), RemoveBlock(block="down_blocks.3")


def gri(unit: str) -> ReplaceUnit:
    return ReplaceUnit(unit=unit, with_="gri_attention")


# ---------------------------------------------------------------------------------------------- files

FULL = PruningPlan(
    name="by hand",
    family="tiny",
    teacher_config_sha256="0" * 64,
    edits=(*SHALLOW_PAIR, MID, RemoveUnit(unit="mid_block.resnets.0"), gri("down_blocks.0.attentions.0")),
    frozen=("conv_in",),
    budget="80%",
    budget_ratio=0.8,
    confidence=0.95,
    damage_from="prior",
    predicted=Prediction(latency_s=1.5, ratio=0.75, low=0.7, high=0.8),
    proof=Proof(status="optimal", damage=1.25, bound=1.25, gap=0.0),
    profile_sha256="1" * 64,
)


def test_a_plan_comes_back_from_its_file_as_it_was(tmp_path):
    FULL.save(tmp_path / "plan.json")
    again = PruningPlan.load(tmp_path / "plan.json")
    assert again == FULL
    assert again.sha256() == FULL.sha256()
    assert again.to_json() == FULL.to_json() == (tmp_path / "plan.json").read_text()


def test_the_file_says_with_and_schema_and_op(tmp_path):
    data = json.loads(FULL.to_json())
    assert data["schema"] == "asdm.plan/1"
    assert data["edits"][-1] == {
        "op": "replace_unit",
        "unit": "down_blocks.0.attentions.0",
        "with": "gri_attention",
        "options": {},
    }
    assert [edit["op"] for edit in data["edits"]] == ["remove_layer"] * 2 + ["remove_block", "remove_unit"] + [
        "replace_unit"
    ]


def test_the_shortest_plan_by_hand(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"schema": "asdm.plan/1", "family": "tiny", "edits": []}')
    assert PruningPlan.load(path) == PruningPlan(family="tiny", edits=())


def test_the_hash_of_the_edits_follows_the_edits_alone():
    renamed = FULL.model_copy(update={"name": "other", "budget": None})
    shorter = FULL.model_copy(update={"edits": FULL.edits[:-1]})
    assert renamed.edits_sha256() == FULL.edits_sha256() != shorter.edits_sha256()
    assert renamed.sha256() != FULL.sha256()


REMOVE_UNIT = {"op": "remove_unit", "unit": "mid_block.resnets.0"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"edits": [{"op": "remove_lyer", "block": "mid_block"}]},
            ["edits.0", "remove_lyer", "'remove_layer'", "'replace_unit'"],
        ),
        ({"edits": [{"unit": "mid_block.resnets.0"}]}, ["edits.0", "'op'"]),
        (
            {"edits": [REMOVE_UNIT, {"op": "remove_layer", "block": "up_blocks.3", "layer": "two"}]},
            ["edits.1", "layer", "'two'"],
        ),
        ({"edits": [{"op": "remove_layer", "block": "up_blocks.3", "layer": -1}]}, ["edits.0", "layer", "-1"]),
        ({"edits": [{"op": "remove_unit"}]}, ["edits.0", "unit", "required"]),
        ({"edits": [{"op": "replace_unit", "unit": "mid_block.attentions.0"}]}, ["edits.0", "with", "required"]),
        ({"edits": [REMOVE_UNIT | {"layer": 1}]}, ["edits.0", "layer", "not permitted"]),
        ({"edits": [REMOVE_UNIT, REMOVE_UNIT]}, ["remove mid_block.resnets.0", "twice"]),
        ({"edits": "none"}, ["edits", "'none'"]),
        ({"edits": [5]}, ["edits.0", "5"]),
        ({"editts": []}, ["editts", "not permitted"]),
        ({"family": None}, ["family", "None"]),
        ({"budget_ratio": "most"}, ["budget_ratio", "'most'"]),
        ({"predicted": {"latency_s": 1.0}}, ["predicted.ratio", "required"]),
        ({"schema": "asdm.plan/2"}, ["asdm.plan/2", "asdm.plan/1", "upgrade"]),
        ({"schema": "asdm.profile/1"}, ["asdm.profile/1", "asdm.plan/1"]),
    ],
)
def test_a_plan_broken_by_hand_is_refused_in_one_sentence(tmp_path, change, words):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"schema": "asdm.plan/1", "family": "tiny", "edits": [], **change}))
    with pytest.raises(ValueError, match=r"plan\.json") as caught:
        PruningPlan.load(path)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert [word for word in words if word not in sentence] == []


def test_no_number_of_a_plan_is_infinite():
    with pytest.raises(ValueError, match="finite"):
        Prediction(latency_s=math.inf, ratio=1.0, low=1.0, high=1.0)


def test_edits_from_plain_values():
    assert parse_edits([REMOVE_UNIT, {"op": "remove_block", "block": "mid_block"}]) == (
        RemoveUnit(unit="mid_block.resnets.0"),
        MID,
    )
    with pytest.raises(ValueError, match=r"^config.json: edits\.0: .*'op'"):
        parse_edits([{}], "config.json")


# ---------------------------------------------------------------------------------------------- legality


@pytest.fixture(scope="module")
def shape():
    return units.topology(make_unet())


def layer(block: str, index: int) -> RemoveLayer:
    return RemoveLayer(block=block, layer=index)


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        pytest.param(
            [RemoveUnit(unit="down_blocks.0.attentions.7")],
            ["'down_blocks.0.attentions.7'", "choose from down_blocks.0.resnets.0, down_blocks.0.attentions.0"],
            id="unknown unit",
        ),
        pytest.param([gri("middle")], ["'middle'", "choose from", "38 in all"], id="unknown unit, nothing near"),
        pytest.param(
            [layer("down_blocks.4", 0)],
            ["'down_blocks.4'", "choose from down_blocks.0, ", "up_blocks.3."],
            id="unknown block",
        ),
        pytest.param(
            [layer("mid_block", 0)], ["'mid_block'", "choose from down_blocks.0, "], id="no layer of the middle"
        ),
        pytest.param(
            [layer("down_blocks.0", 2)], ["remove layer 2 of down_blocks.0", "has layers 0, 1."], id="unknown layer"
        ),
        pytest.param([layer("down_blocks.0", 1)], ["mirrored", "layer 1 or 2 of up_blocks.3"], id="down without up"),
        pytest.param([layer("up_blocks.3", 1)], ["mirrored", "layer 0 or 1 of down_blocks.0"], id="up without down"),
        pytest.param(
            [layer("down_blocks.1", 0), layer("up_blocks.2", 1)],
            ["down_blocks.1.resnets.1 takes 64 channels and would get 32"],
            id="the layer that changes channels",
        ),
        pytest.param(
            [RemoveUnit(unit="down_blocks.1.resnets.0")],
            ["down_blocks.1.resnets.0", "32 channels to 64"],
            id="a resnet that changes channels",
        ),
        pytest.param(
            [RemoveUnit(unit="up_blocks.1.resnets.2")], ["128 channels to 64"], id="an up resnet takes its skip in"
        ),
        pytest.param(
            [RemoveUnit(unit="mid_block.resnets.0"), RemoveUnit(unit="mid_block.resnets.0")],
            ["remove mid_block.resnets.0", "already has an edit"],
            id="removed twice",
        ),
        pytest.param(
            [gri("mid_block.attentions.0"), RemoveUnit(unit="mid_block.attentions.0")],
            ["remove mid_block.attentions.0", "already has an edit"],
            id="replaced and removed",
        ),
        pytest.param(
            [*SHALLOW_PAIR, gri("up_blocks.3.attentions.1")],
            ["replace up_blocks.3.attentions.1", "already removed"],
            id="a unit of a layer that is gone",
        ),
        pytest.param(
            [MID, RemoveUnit(unit="mid_block.resnets.0")],
            ["remove mid_block.resnets.0", "already removed"],
            id="a unit of a block that is gone",
        ),
        pytest.param(
            [MID, DEEPEST, layer("up_blocks.0", 0)],
            ["remove layer 0 of up_blocks.0", "removed whole"],
            id="a layer of a block that is gone",
        ),
        pytest.param(
            [RemoveBlock(block="down_blocks.0")],
            ["down_blocks.0", "only mid_block and down_blocks.3"],
            id="a shallow block",
        ),
        pytest.param(
            [RemoveBlock(block="up_blocks.0")],
            ["only mid_block and down_blocks.3"],
            id="the pair goes by its down block",
        ),
        pytest.param(
            [RemoveBlock(block="nothing")], ["remove nothing", "only mid_block and down_blocks.3"], id="no such block"
        ),
        pytest.param(
            [DEEPEST], ["down_blocks.3", "remove mid_block as well"], id="the deepest pair without the middle"
        ),
        pytest.param(
            [layer("down_blocks.0", 0), layer("down_blocks.0", 1), layer("up_blocks.3", 1), layer("up_blocks.3", 2)],
            ["down_blocks.0 would have no layer left"],
            id="a block with no layer left",
        ),
    ],
)
def test_an_illegal_edit_is_refused_with_the_choices(shape, edits, words):
    with pytest.raises(ValueError, match=r"\.$") as caught:
        resolve(shape, edits)
    assert [word for word in words if word not in str(caught.value)] == []


def test_the_partner_that_the_error_names_makes_the_plan_legal(shape):
    with pytest.raises(ValueError, match=r"remove layer 1 or 2 of up_blocks\.3 too"):
        resolve(shape, [layer("down_blocks.0", 1)])
    for partner in (1, 2):
        kept = resolve(shape, [layer("down_blocks.0", 1), layer("up_blocks.3", partner)])
        assert kept.removed_layers == {("down_blocks.0", 1), ("up_blocks.3", partner)}
    with pytest.raises(ValueError, match="does not fit together"):
        resolve(shape, [layer("down_blocks.0", 1), layer("up_blocks.3", 0)])  # takes 96 channels to 32


def test_a_unet_without_middle_block_may_lose_its_deepest_pair():
    shape = units.topology(make_unet(mid_block_type=None))
    assert resolve(shape, [DEEPEST]).removed_blocks == {"down_blocks.3", "up_blocks.0"}
    with pytest.raises(ValueError, match=r"only down_blocks\.3 may be removed whole"):
        resolve(shape, [MID])


def test_what_is_gone_is_named_in_the_order_of_data_flow(shape):
    kept = resolve(shape, [RemoveUnit(unit="mid_block.attentions.0"), *reversed(SHALLOW_PAIR)])
    assert kept.gone == (
        "down_blocks.0.resnets.1", "down_blocks.0.attentions.1",
        "mid_block.attentions.0",
        "up_blocks.3.resnets.1", "up_blocks.3.attentions.1",
    )  # fmt: skip


def test_the_deepest_pair_takes_its_samplers_along(shape):
    kept = resolve(shape, [MID, DEEPEST])
    units_gone = 2 + 3 + 3  # ResNets of down_blocks.3 and up_blocks.0, and the middle block
    assert len(kept.gone) == units_gone + 2
    assert {"down_blocks.2.downsamplers.0", "up_blocks.0.upsamplers.0"} < set(kept.gone)


# ---------------------------------------------------------------------------------------------- resolve against reality
#
# A small UNet is operated on without asking resolve(), and run: whatever resolve() accepts must run and give the
# right shape, and whatever it refuses must not, unless it refuses on policy alone.

SMALL = make_unet(block_out_channels=[8, 16, 16, 16], norm_num_groups=4, cross_attention_dim=32)
SHAPE = units.topology(SMALL)
POLICY = (
    "without a consumer",  # diffusers would silently let the skip fall
    "would have no layer left",
    "already has an edit",
    "already removed",
    "trained for",
)


def operate_unchecked(unet, edits) -> None:
    """The same edits by the bare verbs of surgery."""
    for edit in edits:
        if isinstance(edit, RemoveUnit):
            unet.set_submodule(edit.unit, _identity(unet.get_submodule(edit.unit)))
    layers = {(edit.block, edit.layer) for edit in edits if isinstance(edit, RemoveLayer)}
    for block, index in sorted(layers, reverse=True):
        units.delete_layer(unet, block, index)
    blocks = {edit.block for edit in edits if isinstance(edit, RemoveBlock)}
    if "mid_block" in blocks:
        units.delete_mid_block(unet)
    if "down_blocks.3" in blocks:
        units.delete_deepest_pair(unet)


def _identity(unit):
    from asdm.unet.replacements import pass_through

    return pass_through.TransformerPassThrough() if hasattr(unit, "norm") else pass_through.ResnetPassThrough()


def runs(unet) -> bool:
    try:
        return run(unet, height=8, width=8).shape == (1, 4, 8, 8)
    except (RuntimeError, IndexError, ValueError, TypeError):
        return False


def mirrored(level: int, down: int, up: int) -> list:
    return [layer(f"down_blocks.{level}", down), layer(f"up_blocks.{3 - level}", up)]


PAIRS = st.builds(mirrored, st.integers(0, 3), st.integers(0, 1), st.integers(0, 2))
LAYERS = st.sampled_from(
    [[layer(block, i)] for block in SHAPE.blocks[:4] + SHAPE.blocks[5:] for i in SHAPE.layers(block)]
)
UNITS = st.sampled_from([[RemoveUnit(unit=unit.fqn)] for unit in SHAPE.units])
REPLACED = st.sampled_from([[gri(unit.fqn)] for unit in SHAPE.units if unit.kind == "transformer"])
BLOCKS = st.sampled_from([[MID], [MID, DEEPEST], [DEEPEST]])
EDITS = st.lists(PAIRS | PAIRS | LAYERS | UNITS | REPLACED | BLOCKS, max_size=4).map(lambda found: list(chain(*found)))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(EDITS)
def test_resolve_accepts_what_runs_and_refuses_what_does_not(edits):
    unet, refused = shared_copy(SMALL), refusal(edits)
    event("refused" if refused else "accepted")
    if refused:
        with pytest.raises(ValueError, match=r"\.$"):
            apply_plan(unet, resolved_on(unet, edits))
        assert any(reason in refused for reason in POLICY) or not _runs_unchecked(unet, edits), refused
    else:
        teacher = dict(unet.named_modules())
        applied = apply_plan(unet, resolved_on(unet, edits))
        assert runs(unet)
        for name, origin in applied.name_map.items():
            assert unet.get_submodule(name) is teacher[origin] or origin in applied.replaced


def refusal(edits) -> str | None:
    try:
        resolve(SHAPE, edits)
    except ValueError as error:
        return str(error)
    return None


def _runs_unchecked(unet, edits) -> bool:
    operate_unchecked(unet, edits)
    return runs(unet)


@pytest.mark.parametrize("level", range(4))
def test_which_mirrored_pairs_are_legal_is_what_really_runs(level):
    legal, running = set(), set()
    for down in range(2):
        for up in range(3):
            edits = mirrored(level, down, up)
            if is_legal_flow(SHAPE, [], [(edit.block, edit.layer) for edit in edits]):
                legal.add((down, up))
            if _runs_unchecked(shared_copy(SMALL), edits):
                running.add((down, up))
    assert legal == running
    assert (1, 1) in legal  # the pair that the presets take: last layer down, second layer up


@pytest.mark.parametrize("down", ["down_blocks.2", "down_blocks.3"])
def test_a_partner_on_another_level_does_not_fit_even_where_its_channels_do(down):
    for up in SHAPE.up_blocks:
        layers = [(down, 1), (up, 1)]
        legal = is_legal_flow(SHAPE, [], layers)
        assert legal == (up == SHAPE.mirror(down))
        assert legal == _runs_unchecked(shared_copy(SMALL), [layer(*pair) for pair in layers])
