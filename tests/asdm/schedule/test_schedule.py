"""Schedules: legal or refused in one sentence, what a pass computes, and forecasts."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from asdm.models.example_inputs import unet_inputs
from asdm.models.families import load_family
from asdm.models.loading import meta_unet
from asdm.plan.topology import Topology
from asdm.schedule import forecast, presets
from asdm.schedule.cost import macs_as_run
from asdm.schedule.legality import resolve
from asdm.schedule.schedule import Forecast, Pass, Schedule, by_name
from asdm.unet import blocks
from asdm.utils import registry
from tests.tiny import TINY_FAMILY, make_unet

STEPS = 6


@pytest.fixture(scope="module")
def topology() -> Topology:
    with torch.device("meta"):
        return blocks.topology(make_unet())


def schedule(steps: list[str], networks: dict[str, str] | None = None, **passes: Pass) -> Schedule:
    return Schedule(
        family="tiny", passes={"full": Pass(), **passes}, steps=tuple(steps), networks=networks or {}
    )  # fmt: skip


@pytest.mark.parametrize("name", registry.names(presets.PACKAGE))
def test_every_preset_gives_a_legal_schedule_and_survives_a_file(name: str, topology: Topology, tmp_path: Any) -> None:
    source = f"{name}:student=bk_sdm_base,step=2" if name == "switch" else name
    made = presets.make(source, topology, STEPS, "tiny")
    shapes = dict.fromkeys(("teacher", *made.networks), topology)
    assert len(resolve(shapes, made).steps) == STEPS
    made.save(tmp_path / "schedule.json")
    assert Schedule.load(tmp_path / "schedule.json") == made


@pytest.mark.parametrize(
    ("steps", "passes", "message"),
    [
        (["full", "x"], {"x": Pass(inherit=("up_blocks.9",))}, "inherits 'up_blocks.9', but this UNet has no part"),
        (["x", "full"], {"x": Pass(inherit=("mid_block",))}, "step 0 (x) inherits mid_block, which teacher has not"),
        (["x", "y"], {"x": Pass(unconditional="drop"), "y": Pass(inherit=("unet",))}, "for the unconditional half"),
        (["full", "x"], {"x": Pass(inherit=("up_blocks.0.upsamplers.0",), value="residual")}, "is not a unit"),
        (["full", "s"], {"s": Pass(network="s")}, "runs s, and only teacher is given"),
    ],
)
def test_illegal_schedules_are_refused_in_one_sentence(
    steps: list[str], passes: dict[str, Pass], message: str, topology: Topology
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        resolve(topology, schedule(steps, {"s": "dir"}, **passes))
    assert "\n" not in str(caught.value)


def test_students_are_named_by_their_folders_and_no_two_alike() -> None:
    assert by_name(["runs/half-0.5", "plans/0.65.json", "bk_sdm_base"]) == {
        "half-0.5": "runs/half-0.5", "0.65": "plans/0.65.json", "bk_sdm_base": "bk_sdm_base"
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"^b/s would be called 's', which is also that of a/s; rename one of them\.$"):
        by_name(["a/s", "b/s"])
    with pytest.raises(ValueError, match=r"^a/teacher would be called 'teacher', which is the teacher's; rename"):
        by_name(["a/teacher"])


def test_a_file_with_an_unknown_pass_is_refused() -> None:
    data = {"schema": "asdm.schedule/1", "family": "tiny", "passes": {"full": {}}, "steps": ["full", "half"]}
    with pytest.raises(ValueError, match="step 1 is 'half', which is not a pass; choose from full"):
        Schedule.parse(data, "schedule.json")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("deepcache:interval=x", "interval of deepcache must be a whole number, got 'x'"),
        ("deepcache:depth=2", "unknown option 'depth' of deepcache; choose from interval, branch"),
        ("deepcache:branch=40", "branch of deepcache must be between 0 and 10, got 40"),
        ("every_n:n=0", "n of every_n must be at least 1, got 0"),
        ("taylor:of=blocks", "taylor: 'of' must be unet or units, got 'blocks'"),
        ("switch", "switch needs a student: switch:step=3,student=DIR"),
        ("faster", "unknown name 'faster' in presets; choose from deepcache"),
    ],
)
def test_presets_name_the_option_the_value_and_the_choices(source: str, message: str, topology: Topology) -> None:
    with pytest.raises(ValueError, match=message):
        presets.make(source, topology, STEPS, "tiny")


def test_a_block_whose_parts_are_all_inherited_is_one_place(topology: Topology) -> None:
    units = tuple(unit.fqn for unit in topology.units if unit.block == "up_blocks.3")
    steps = resolve(topology, schedule(["full", "x"], x=Pass(inherit=units))).steps
    assert {place.fqn for place in steps[1].conditional.places} == {"up_blocks.3"}
    assert {place.fqn for place in steps[0].keep["teacher"]} == {"up_blocks.3"}


# ---------------------------------------------------------------------------------------------- MACs


@pytest.fixture(scope="module")
def sd15() -> tuple[Any, dict[str, Any]]:
    family = load_family("sd15")
    return meta_unet(family), unet_inputs(family, 1, None, "meta")


@pytest.mark.parametrize(("interval", "average"), [(3, 172.91e9), (5, 127.16e9)])
def test_deepcache_costs_its_published_macs(sd15: Any, interval: int, average: float) -> None:
    unet, inputs = sd15
    made = presets.make(f"deepcache:interval={interval},branch=0", blocks.topology(unet), 3 * interval, "sd15")
    macs = macs_as_run(unet, made, inputs)
    assert macs[0] == 401_636_720_640
    # stem, time embedding, one down layer, the last up layer, head
    stem = 47_185_920 + 2_048_000 + 47_185_920
    assert macs[1] == stem + (7_550_156_800 + 19_365_724_160) + (12_163_891_200 + 19_365_724_160)
    assert round(macs[1] / 1e9, 3) == 58.542
    assert np.mean(macs) == pytest.approx(average, rel=1e-4)


def test_a_dropped_half_and_an_inherited_output_cost_what_is_left() -> None:
    with torch.device("meta"):
        unet = make_unet()
    inputs = unet_inputs(TINY_FAMILY, 2, None, "meta")
    passes = {
        "drop": Pass(unconditional="drop"),
        "none": Pass(inherit=("unet",)),
        "reuse": Pass(unconditional=("unet",)),
    }
    full, dropped, nothing, reused = macs_as_run(unet, schedule(["full", *passes], **passes), inputs, guided=True)
    assert (dropped, reused, nothing) == (full / 2, full / 2, 0)


# ---------------------------------------------------------------------------------------------- forecasts


@pytest.mark.parametrize("order", [1, 2, 3])
def test_taylor_is_exact_on_a_line_and_interpolates_the_newest_value(order: int) -> None:
    kept = [0, 2, 5, 6][-(order + 1) :]
    weights = np.array(forecast.weights(Forecast(kind="taylor", order=order), kept, 9))
    assert weights.sum() == pytest.approx(1.0)
    assert weights @ np.array([3.0 * step + 1 for step in kept]) == pytest.approx(28.0)
    assert forecast.weights(Forecast(order=order), kept, kept[-1]) == pytest.approx([*[0.0] * order, 1.0])


def test_taylor_of_order_two_is_the_papers_formula() -> None:
    newest, middle, oldest = 7.0, 4.0, 3.0  # every 2 steps: d₁ = 3/2, d₂ = (3/2 − 1/2)/2
    weights = forecast.weights(Forecast(order=2), [0, 2, 4], 5)
    assert np.dot(weights, [oldest, middle, newest]) == pytest.approx(7 + 1.5 * 1 + 0.5 * 1 / 2)


def test_chebyshev_follows_a_parabola_closely() -> None:
    kept = [0, 2, 4, 6]
    weights = np.array(forecast.weights(Forecast(kind="chebyshev", order=2), kept, 7))
    assert weights @ np.array([step**2 for step in kept]) == pytest.approx(49, rel=0.05)


def test_a_forecast_with_too_few_values_has_a_lower_order() -> None:
    assert forecast.weights(Forecast(order=3), [4], 5) == (1.0,)
    assert forecast.weights(Forecast(order=3), [3, 4], 5) == pytest.approx([-1.0, 2.0])
    assert forecast.weights(None, [3, 4], 5) == (0.0, 1.0)
