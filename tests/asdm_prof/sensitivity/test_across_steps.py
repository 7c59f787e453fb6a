"""Damage across steps on a tiny pipeline: what it measures, that it resumes, and what a schedule makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asdm.data import drawn
from asdm.models.families import load_family
from asdm.models.loading import load_unet
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.schedule.schedule import Schedule
from asdm.schedule.unet import ScheduledUNet
from asdm_prof.planner.schedule.model import StepsModel
from asdm_prof.records import StepsDamage
from asdm_prof.sensitivity import across_steps, study
from asdm_prof.sensitivity.forced import error_of
from asdm_prof.sensitivity.settings import AcrossSteps, SensitivitySettings
from asdm_prof.sensitivity.trajectories import Sampler
from tests.tiny import make_unet

STEPS = 5
SETTINGS = SensitivitySettings(prompts=3, threads=1, data="emoji")
ATTENTIONS = "self_attention,cross_attention"
ACROSS = AcrossSteps(steps=STEPS, ages=2, guidance_scale=3.0, inherit=[ATTENTIONS])


@pytest.fixture(scope="module", autouse=True)
def small_batches() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(across_steps, "PROMPTS_AT_ONCE", 2)
        patch.setattr(across_steps, "TIMED_CALLS", 2)
        yield


def measure(teacher: Path, run_file: Path | None = None, **across: Any) -> StepsDamage:
    return across_steps.measure_across_steps(str(teacher), SETTINGS, replace(ACROSS, **across), 4, run_file)


@pytest.fixture(scope="module")
def damage(tiny_pipeline: Path) -> StepsDamage:
    return measure(tiny_pipeline)


def test_a_file_of_prompts_is_enough_with_schedules_and_clip_scores(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text("a heart\na moon\na house\n")
    monkeypatch.setattr(drawn, "_draw", lambda *_: pytest.fail("captions need no pictures"))
    monkeypatch.setattr(study, "DRAWING_STEPS", 1)
    settings = replace(SETTINGS, weights=str(tiny_pipeline), data=f"prompts:{tmp_path / 'prompts.txt'}", judge="mini")
    family = load_family(str(tiny_pipeline))
    assert sorted(across_steps._captions(family, settings)) == ["a heart", "a house", "a moon"]
    assert [*study.with_clip_scores(family, [], settings, 2, lambda *_: None)] == []


def test_a_seed_keeps_its_captions_in_each_measurement(tiny_pipeline: Path, tmp_path: Path) -> None:
    """Each draws in its own way, from the lines of a file as from pictures."""
    lines = [f"number {n}" for n in range(9)]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    settings = replace(SETTINGS, data=f"prompts:{tmp_path / 'prompts.txt'}", prompts=4, seed=3)
    by_torch = torch.randperm(9, generator=torch.Generator().manual_seed(3))[:4].tolist()
    assert across_steps._captions(load_family(str(tiny_pipeline)), settings) == [lines[i] for i in by_torch]
    by_numpy = np.random.default_rng(3).permutation(9)[:4]
    assert study._captions(settings, 16, 4) == [lines[i] for i in by_numpy]


def test_every_pass_is_measured_at_every_step_age_and_gap(damage: StepsDamage) -> None:
    by_name = {one.name: one.error for one in damage.damages}
    assert by_name["full"] == (((0.0,),),) * STEPS
    assert [len(step) for step in by_name["output"]] == [0, 1, 2, 2, 2]
    assert by_name["output-taylor1"][1] == ((None, None),)  # nothing came before the last full step
    assert by_name["output-taylor1"][4][0][1] is not None
    assert all(error > 0 for step in by_name["branch0"][1:] for row in step for error in row if error is not None)
    assert len(damage.gains) == damage.calls == STEPS
    assert [one.steps for one in damage.fewer_steps] == [4, 3, 2]
    assert damage.additivity is not None


def test_a_picture_that_is_no_square_is_measured_upright(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text("a heart\na moon\n")
    seen, own = [], Sampler.batch

    def stopped(self: Sampler, captions: Any, side: tuple[int, int], seed: int) -> Any:
        seen.append((side, own(self, captions, side, seed).noise.shape[2:]))
        raise InterruptedError

    monkeypatch.setattr(Sampler, "batch", stopped)
    prompts = f"prompts:{tmp_path / 'prompts.txt'}"
    wide = replace(SETTINGS, prompts=2, size=(128, 64), data=prompts)  # width × height
    with pytest.raises(InterruptedError):
        across_steps.measure_across_steps(str(tiny_pipeline), wide, replace(ACROSS, steps=2, ages=1), 0, None)
    assert seen == [((8, 16), (8, 16))]


def test_a_named_pass_is_measured_and_timed(tiny_pipeline: Path, damage: StepsDamage) -> None:
    """Attentions alone are no units of a profile, so what they cost comes from the calibration."""
    named = ("self_attention+cross_attention", "self_attention+cross_attention-taylor1")
    assert tuple(damage.pass_seconds) == named
    by_name = {one.name: one.error for one in damage.damages}
    for name in named:
        assert damage.passes[name].inherit == ("self_attention", "cross_attention")
        assert all(error > 0 for step in by_name[name][1:] for row in step for error in row if error is not None)
        assert 0 < damage.pass_seconds[name] < 2 * damage.full_seconds
    with pytest.raises(ValueError, match="inherits 'attention', but this UNet has no part of that name; choose from"):
        measure(tiny_pipeline, inherit=["attention"])


def test_an_interrupted_measurement_continues(
    tiny_pipeline: Path, damage: StepsDamage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, ran = across_steps._measure_batch, []

    def killed_at_the_second(*args: Any) -> Any:
        if ran:
            raise KeyboardInterrupt
        ran.append(args[3])
        return real(*args)

    monkeypatch.setattr(across_steps, "_measure_batch", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        measure(tiny_pipeline, tmp_path / "steps.run")
    monkeypatch.setattr(across_steps, "_measure_batch", lambda *args: (ran.append(args[3]), real(*args))[1])
    again = measure(tiny_pipeline, tmp_path / "steps.run")
    assert ran == [0, 1]
    for name in ("damages", "gains", "schedules", "fewer_steps"):
        assert getattr(again, name) == getattr(damage, name), name
    with pytest.raises(ValueError, match="is an unfinished run of another teacher or with other data or options"):
        measure(tiny_pipeline, tmp_path / "steps.run", steps=4)


def test_a_student_is_measured_alone_and_in_random_schedules(tiny_pipeline: Path) -> None:
    found = measure(tiny_pipeline, student=["bk_sdm_base"])
    assert found.networks == {"bk_sdm_base": "bk_sdm_base"}
    (alone,) = (one for one in found.damages if one.name == "bk_sdm_base")
    assert all(row[0][0] > 0 for row in alone.error)
    drawn_by = {found.passes[name].network for one in found.schedules for name in one.steps}
    assert drawn_by == {"teacher", "bk_sdm_base"}


def test_a_run_with_another_student_or_other_passes_is_not_continued(tiny_pipeline: Path, tmp_path: Path) -> None:
    """No joint schedules are there to tell them apart."""
    family, settings = load_family(str(tiny_pipeline)), replace(SETTINGS, weights=str(tiny_pipeline))
    mine = across_steps._open_study(family, load_unet(family, str(tiny_pipeline)), settings, ACROSS, 0)
    mine.networks = {**mine.networks, "small": make_unet()}
    file = across_steps._open_run(None, "teacher", mine, settings, ["a"]).save(tmp_path / "steps.run")
    across_steps._open_run(file, "teacher", mine, settings, ["a"])
    other_student = replace(mine, networks={**mine.networks, "small": make_unet(seed=1)})
    other_passes = replace(mine, passes=dict([*mine.passes.items()][:-1]))
    for other in (other_student, other_passes):
        with pytest.raises(ValueError, match="is an unfinished run of another teacher or with other data or options"):
            across_steps._open_run(file, "teacher", other, settings, ["a"])


def test_the_error_of_a_pass_is_that_of_its_schedule(tiny_pipeline: Path, damage: StepsDamage) -> None:
    """At the last step nothing runs on, so a schedule's output there differs by what was measured."""
    family = load_family(str(tiny_pipeline))
    teacher = load_unet(family, str(tiny_pipeline))
    sampler = Sampler(pipeline(family, teacher, Setup(weights=str(tiny_pipeline))), STEPS, 3.0)
    captions = across_steps._captions(family, replace(SETTINGS, weights=str(tiny_pipeline)))
    for name, gap in (("branch0", 1), ("clean-taylor1", 2), ("unconditional", 2)):
        steps = ["full", "full", "full", "full", name] if gap == 1 else ["full", "full", "unconditional", "full", name]
        schedule = Schedule(family="tiny", passes=damage.passes, steps=tuple(steps))
        errors = []
        for n, own in enumerate((captions[:2], captions[2:])):
            outputs: dict[str, torch.Tensor] = {}
            batch = sampler.batch(own, (8, 8), SETTINGS.seed + n)
            scheduled = ScheduledUNet(teacher, schedule, sampler.new(), guided=True)

            def predict(step: int, rows: torch.Tensor, t: Any, batch: Any = batch, outputs: Any = outputs) -> Any:
                plain = teacher(rows, t, batch.states, return_dict=False)[0]
                outputs["plain"] = plain
                outputs["own"] = scheduled(rows, t, batch.states, return_dict=False)[0]  # noqa: B023
                return plain

            with torch.inference_mode():
                sampler.draw(batch, predict)
            own_error = error_of(sampler.guide(outputs["own"]), sampler.guide(outputs["plain"]))
            errors += own_error.tolist()
        measured = StepsModel.of(damage.passes, damage.damages, damage.gains)
        state = None
        for before in steps[:-1]:
            state = measured.after(state, before)
        assert measured.error(STEPS - 1, state, name) == pytest.approx(np.mean(errors), rel=1e-3), name
