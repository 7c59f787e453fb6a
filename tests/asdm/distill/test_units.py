"""Replaced units that learn alone: the closed form, the library on disk, and the students that are made from it."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from asdm.distill.refit import channel_power, error, refit
from asdm.distill.settings import UnitSettings
from asdm.distill.units import distill_units
from asdm.models import loading, student as students
from asdm.models.families import load_family
from asdm.models.units import UnitLibrary
from asdm.plan.edits import PruningPlan, ReplaceUnit
from asdm.records.units import Units
from asdm.unet.hooks import Call
from asdm.unet.replacements import Refit, made
from asdm.unet.surgery import replacement_for
from asdm.utils import registry
from tests.pictures import picture

UNIT = "down_blocks.0.attentions.0"
QUICK = UnitSettings(options="pointwise_conv,no_feed_forward", data="emoji", split="held_out", calibration=16, batch=4)


def calls_of(unit: nn.Module, n: int, *shapes: tuple[int, ...], **kwargs: object) -> list[Call]:
    """Random calls of a unit with what it gives, on inputs with a mean of their own."""
    found = []
    for seed in range(n):
        generator = torch.Generator().manual_seed(seed)
        args = tuple(torch.randn(shape, generator=generator) + 0.5 for shape in shapes)
        with torch.no_grad():
            found.append(Call(args, kwargs, unit(*args, **kwargs)))
    return found


def test_least_squares_finds_the_layer_that_gave_the_output() -> None:
    torch.manual_seed(0)
    original, new = (nn.Sequential(nn.Conv2d(3, 5, 3, padding=1)) for _ in range(2))
    calls = calls_of(original, 8, (2, 3, 6, 6))
    refit(new, original, [Refit("0", "0")], calls[2:], calls[:2])
    assert error(new, calls) < 1e-6
    torch.testing.assert_close(new[0].weight, original[0].weight, rtol=1e-3, atol=1e-3)


def test_a_removed_part_becomes_its_mean(tiny_unet: nn.Module) -> None:
    unit = tiny_unet.get_submodule(UNIT)
    states = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(9))
    calls = calls_of(unit, 4, (2, 32, 8, 8), encoder_hidden_states=states, return_dict=False)
    new = made("no_cross_attention", unit, (), {})
    seen = []
    handle = unit.transformer_blocks[0].attn2.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        for call in calls:
            unit(*call.args, **call.kwargs)
    handle.remove()
    place = "transformer_blocks.0.attn2"
    refit(new, unit, [Refit(place, place)], calls[1:], calls[:1])
    mean = torch.cat(seen).flatten(0, 1).mean(0)
    torch.testing.assert_close(new.transformer_blocks[0].attn2.bias, mean, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("name", "fqn"),
    [("narrow_resnet", "down_blocks.1.resnets.0"), ("pointwise_conv", "down_blocks.1.resnets.0"),
     ("low_rank_conv", "mid_block.resnets.0"), ("fewer_heads", UNIT), ("low_rank_feed_forward", UNIT)],
)  # fmt: skip
def test_fitting_brings_a_unit_nearer_on_data_that_it_was_not_fitted_on(
    tiny_unet: nn.Module, name: str, fqn: str
) -> None:
    unit = tiny_unet.get_submodule(fqn)
    if fqn == UNIT:
        states = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(9))
        calls = calls_of(unit, 16, (2, 32, 8, 8), encoder_hidden_states=states, return_dict=False)
    else:
        calls = calls_of(unit, 16, (2, unit.in_channels, 8, 8), (2, 128))
    fit, judge, fresh = calls[:10], calls[10:13], calls[13:]
    edit = ReplaceUnit(unit=fqn, with_=name)
    plain, new = replacement_for(tiny_unet, edit), replacement_for(tiny_unet, edit, channel_power(unit, fit))
    before = {key: value.clone() for key, value in unit.state_dict().items()}
    new = copy.deepcopy(new)
    refit(new, unit, registry.load("asdm.unet.replacements", name).refits(new), fit, judge)
    assert error(new, fresh) < 0.9 * error(plain, fresh)
    assert all(torch.equal(before[key], value) for key, value in unit.state_dict().items()), "the teacher's own stay"


@pytest.fixture(scope="module")
def library(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Units]:
    folder = tmp_path_factory.mktemp("units") / "library"
    return folder, distill_units(str(tiny_pipeline), folder, QUICK, command="asdm distill-units")


def test_a_library_has_every_unit_nearer_than_its_weights_alone(library: tuple[Path, Units]) -> None:
    folder, record = library
    assert Units.load(folder / "units.json") == record
    assert {unit.edit.with_ for unit in record.units} == {"pointwise_conv", "no_feed_forward"}
    assert all(0 < unit.fitted <= unit.from_weights for unit in record.units)
    assert sum(unit.fitted < 0.9 * unit.from_weights for unit in record.units) > len(record.units) / 2
    assert {file.stem for file in folder.glob("*.safetensors")} == {unit.sha256 for unit in record.units}


def test_what_a_library_has_is_kept_and_the_rest_is_added(
    library: tuple[Path, Units], tiny_pipeline: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "library"
    shutil.copytree(library[0], folder)
    times = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.safetensors")}
    edit = ReplaceUnit(unit="mid_block.resnets.0", with_="narrow_resnet", options={"keep": 0.25})
    plan = PruningPlan(family="tiny", edits=(edit, ReplaceUnit(unit="mid_block.resnets.1", with_="pointwise_conv")))
    record = distill_units(str(tiny_pipeline), folder, QUICK, [plan])
    assert len(record.units) == len(library[1].units) + 1
    assert all((folder / name).stat().st_mtime_ns == at for name, at in times.items())
    with pytest.raises(ValueError, match="is a library with steps 0, got 3; name another folder"):
        distill_units(str(tiny_pipeline), folder, replace(QUICK, steps=3), [plan])


def test_training_alone_brings_a_unit_nearer_still(tiny_pipeline: Path, tmp_path: Path) -> None:
    settings = replace(QUICK, options="depthwise_resnet", steps=12, learning_rate=3e-3)
    record = distill_units(str(tiny_pipeline), tmp_path / "library", settings)
    assert all(unit.trained is not None and unit.trained <= unit.fitted for unit in record.units)
    assert any(unit.trained < 0.97 * unit.fitted for unit in record.units)


@torch.no_grad()
def test_a_student_is_put_together_from_its_library(
    library: tuple[Path, Units], tiny_pipeline: Path, tmp_path: Path, run
) -> None:
    folder, record = library
    family = load_family(str(tiny_pipeline))
    teacher = loading.load_unet(family, str(tiny_pipeline))
    units = UnitLibrary(folder, teacher)
    edits = tuple(unit.edit for unit in {unit.edit.unit: unit for unit in record.units}.values())
    plan = PruningPlan(family="tiny", edits=edits)
    made_, _ = students.build(teacher, plan, units)
    alone, _ = students.build(teacher, plan)
    generator = torch.Generator().manual_seed(0)
    args = {
        "sample": torch.randn(2, 4, 8, 8, generator=generator), "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(2, 16, 32, generator=generator), "return_dict": False,
    }  # fmt: skip
    assert not torch.equal(made_(**args)[0], alone(**args)[0])
    plan.save(tmp_path / "plan.json")
    words = ("plan.json", "--teacher", tiny_pipeline, "--units", folder, "-o", "student")
    result = run("asdm", "build", *words)
    assert result.code == 0, result.stderr
    saved = students.StudentUNet.from_pretrained(tmp_path / "student")
    assert torch.equal(saved(**args)[0], made_(**args)[0])
    with torch.no_grad():
        next(teacher.parameters()).add_(1)
    with pytest.raises(ValueError, match="has units of another teacher"):
        UnitLibrary(folder, teacher)


def test_another_models_units_are_fitted_on_no_emoji_unasked(tiny_pipeline: Path, tmp_path: Path) -> None:
    unnamed = replace(QUICK, data=None)
    with pytest.raises(ValueError, match=r"^asdm distill-units of .* needs pictures like those that it draws"):
        distill_units(str(tiny_pipeline), tmp_path / "library", unnamed)
    assert not (tmp_path / "library").exists()


def test_units_of_other_encoders_are_made_anew(tiny_pipeline: Path, tmp_path: Path) -> None:
    one = replace(QUICK, options="no_feed_forward", calibration=8)
    plans = [PruningPlan(family="tiny", edits=(ReplaceUnit(unit="mid_block.attentions.0", with_="no_feed_forward"),))]
    distill_units(str(tiny_pipeline), tmp_path / "library", one, plans)
    with pytest.raises(ValueError, match="is a library with clip_skip None, got 1; name another folder"):
        distill_units(str(tiny_pipeline), tmp_path / "library", replace(one, clip_skip=1), plans)


def test_other_data_or_another_spelling(tiny_pipeline: Path, tmp_path: Path) -> None:
    """A library goes on with the same pictures however they are named, and with no others."""
    for n in range(4):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
        (tmp_path / f"{n}.txt").write_text(f"number {n}")
    edits = [ReplaceUnit(unit=f"mid_block.resnets.{i}", with_="pointwise_conv") for i in range(2)]
    plans = [PruningPlan(family="tiny", edits=(edit,)) for edit in edits]
    mine = replace(QUICK, data=f"folder:{tmp_path}", split="train", calibration=8)
    first = distill_units(str(tiny_pipeline), tmp_path / "library", mine, plans[:1])
    spelled = replace(mine, data=f"folder:{tmp_path}/.")
    both = distill_units(str(tiny_pipeline), tmp_path / "library", spelled, plans)
    assert (both.data, both.units[:1], len(both.units)) == (first.data, first.units, 2)
    assert distill_units(str(tiny_pipeline), tmp_path / "library", replace(mine, data=None), plans).units == both.units
    (tmp_path / "2.png").write_bytes(picture(2)[:-1] + b"!")
    with pytest.raises(ValueError, match=r"library was made on other data than folder:.* has now; name another folder"):
        distill_units(str(tiny_pipeline), tmp_path / "library", mine, plans)


@pytest.mark.parametrize(
    ("damage", "hashed", "said"),
    [
        (lambda path: path.unlink(), True, "is missing from its library"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"), True, "its bytes are not those"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), False, "is not a safetensors file, or it is damaged"),
        (lambda path: save_file({"weight": torch.full((1,), torch.nan)}, path), False, "weight holds NaN or infinite"),
    ],
)  # fmt: skip
def test_a_damaged_unit_is_named_and_made_again(
    library: tuple[Path, Units], tiny_pipeline: Path, tmp_path: Path, capsys: Any, damage: Any, hashed: bool, said: str
) -> None:
    folder = tmp_path / "library"
    shutil.copytree(library[0], folder)
    record = library[1]
    if not hashed:  # as earlier versions wrote it
        units = tuple(unit.model_copy(update={"file_sha256": None}) for unit in record.units)
        record = record.model_copy(update={"units": units})
        record.save(folder / "units.json", force=True)
    unit = record.units[0]
    path = folder / f"{unit.sha256}.safetensors"
    before = path.read_bytes()
    damage(path)
    teacher = loading.load_unet(load_family(str(tiny_pipeline)), str(tiny_pipeline))
    with pytest.raises(ValueError, match=f"{path}.*{said}") as raised:
        UnitLibrary(folder, teacher)(teacher, unit.edit)
    assert "the same asdm distill-units makes it again." in str(raised.value)
    if "NaN" in said:
        path.unlink()
    distill_units(str(tiny_pipeline), folder, QUICK)
    assert said in capsys.readouterr().err or "NaN" in said
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ([], "has schema None"),
        ({"units": 5}, "units: input should be a valid tuple"),
        ({"units": [{"sha256": "../other"}]}, "sha256: string should match pattern"),
    ],
)
def test_an_index_of_another_shape_is_one_sentence(
    library: tuple[Path, Units], tmp_path: Path, index: Any, said: str
) -> None:
    whole = json.loads((library[0] / "units.json").read_text())
    if isinstance(index, dict) and isinstance(index["units"], list):
        index = {"units": [whole["units"][0] | index["units"][0]]}
    (tmp_path / "units.json").write_text(json.dumps(whole | index if isinstance(index, dict) else index))
    with pytest.raises(ValueError, match=said):
        UnitLibrary(tmp_path, nn.Linear(1, 1))
