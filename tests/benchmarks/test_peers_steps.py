"""The comparison across steps: contestants leave a pipeline as it was, and duels are at equal latency."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asdm.measure.statistics import paired_ratio
from asdm.models.execution import RANDOM
from asdm.models.families import load_family
from asdm.models.loading import load_unet
from asdm.models.pipeline import pipeline
from asdm.models.settings import PictureSetup, Setup
from asdm.models.student import build, read_plan
from asdm.plan.edits import PruningPlan, ReplaceUnit
from asdm.records.levers import Levers
from asdm.records.measurement import Estimate
from asdm.schedule import presets
from asdm.unet import blocks
from benchmarks.equivalence import EQUIVALENT, Judged
from benchmarks.peers_steps import __main__ as command, contestants
from benchmarks.peers_steps.records import Drawn
from tests.tiny import TINY_WHOLE


def test_a_contestant_draws_and_leaves_the_pipeline_as_it_was(tiny_unet: Any) -> None:
    pipe = pipeline(TINY_WHOLE, tiny_unet, Setup(weights=RANDOM))
    options = {"num_inference_steps": 3, "height": 64, "width": 64}
    plain = command._draw(pipe, contestants.plain(), ["a heart"], 0, options)
    for one in (contestants.by_preset("every_n:n=2", 3), contestants.by_preset("deepcache:interval=2", 3)):
        assert not torch.equal(command._draw(pipe, one, ["a heart"], 0, options), plain)
        assert pipe.unet is tiny_unet
    assert torch.equal(command._draw(pipe, contestants.plain(), ["a heart"], 0, options), plain)
    titles = [one.title for one in contestants.all_of(30, [])]
    assert len(titles) == len({*titles})


def test_what_was_drawn_is_kept_for_the_same_contestant_alone(tiny_unet: Any, tmp_path: Path) -> None:
    pipe = pipeline(TINY_WHOLE, tiny_unet, Setup(weights=RANDOM))
    options = {"num_inference_steps": 3, "height": 64, "width": 64}

    def draw(preset: str, captions: int) -> tuple[torch.Tensor, int]:
        """Of a schedule that is called the same whatever it does; and how many pictures were drawn."""
        one = contestants.planned("mine", presets.make(preset, blocks.topology(pipe.unet), 3, "tiny"), {})
        counts = list[int]()
        drawn = command._draw_all(pipe, [one], ["a heart"] * captions, options, tmp_path / "run.pt", 1e9,
                                  lambda _, n, __: counts.append(n))  # fmt: skip
        return drawn[0][one.title], captions - counts[0] if counts else 0

    lazy, new = draw("every_n:n=3", 1)
    assert new == 1
    assert draw("every_n:n=3", 1)[1] == 0
    more, new = draw("every_n:n=3", 2)
    assert (new, torch.equal(more[:1], lazy)) == (1, True)
    other, new = draw("every_n:n=2", 1)
    assert (new, torch.equal(other, lazy)) == (1, False)


def test_a_peer_that_fails_midway_is_told_and_not_tried_again(
    tiny_unet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipeline(TINY_WHOLE, tiny_unet, Setup(weights=RANDOM))
    one = replace(contestants.planned("mine", presets.make("every_n:n=3", blocks.topology(pipe.unet), 3, "tiny"), {}),
                  batch=2)  # fmt: skip
    sizes = list[int]()

    def drawn(_: Any, __: Any, captions: Any, *___: Any) -> torch.Tensor:
        sizes.append(len(captions))
        if len(captions) == 1:
            raise RuntimeError("two pictures at least\nthat is all")
        return torch.zeros(len(captions), 4, 8, 8)

    monkeypatch.setattr(command, "_draw", drawn)
    for _ in range(2):
        latents, failed, done = command._draw_all(pipe, [one], ["a"] * 3, {}, tmp_path / "run.pt", 1e9, lambda *_: None)
        assert (done, failed, len(latents[one.title])) == (True, {one.title: "RuntimeError: two pictures at least"}, 2)
    assert sizes == [2, 1]


def test_every_image_is_timed_beside_a_plain_one(tiny_unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second half of the time, the machine is three times as slow."""
    pipe = pipeline(TINY_WHOLE, tiny_unet, Setup(weights=RANDOM))
    order = list[str]()
    monkeypatch.setattr(command, "installed", lambda one, _: nullcontext(lambda *_, **__: order.append(one.title)))

    def made_up(call: Any, clock: Any) -> float:
        call()
        return {"plain": 2.0}.get(order[-1], 1.0) * (3 if len(order) > 9 else 1)

    monkeypatch.setattr(command.clocks, "timed", made_up)
    ours = [contestants.by_preset(f"every_n:n={n}", 3) for n in (2, 3)]
    times = command._time_all(pipe, [contestants.plain(), *ours], "a heart", {}, 1, lambda *_: None)
    assert order[3:] == [name for title in ("plain", ours[0].title, ours[1].title) for name in ("plain", title)] + [
        name for title in (ours[1].title, ours[0].title, "plain") for name in (title, "plain")
    ]
    assert all(paired_ratio(*times[one.title]).median == pytest.approx(0.5) for one in ours)


def drawn(name: str, of: str, ratio: float, loss: float) -> Drawn:
    around = Estimate(median=ratio, low=ratio, high=ratio)
    return Drawn(
        name=name, setting="", of=of, image_latency_ratio=around, image_latency_s=around, pairs=4,
        latent_mse=(loss, 2 * loss, 3 * loss), clip_score=(0.3 - loss, 0.3, 0.3),
    )  # fmt: skip


def test_a_peer_meets_our_schedule_that_is_no_slower() -> None:
    ours, faster = drawn("ours", "ours", 0.5, 0.1), drawn("ours", "ours", 0.3, 0.4)
    faster = faster.model_copy(update={"setting": "fast"})
    rows = {"slow": (0.6, 0.2), "quick": (0.4, 0.3), "first": (0.2, 1.0)}
    peers = [drawn(name, "peer 1.0", *row) for name, row in rows.items()]
    slow, quick = command._duels([drawn("plain", "diffusers", 1.0, 0.0), *peers, ours, faster])
    assert (slow.peer.strip(), slow.ours) == ("slow", "")
    assert slow.our_ratio == 0.5
    assert slow.latent_mse.median == pytest.approx(0.2)
    assert slow.clip_score.median == pytest.approx(0.1 / 3)
    assert (quick.peer.strip(), quick.ours) == ("quick", "fast")
    assert quick.latent_mse.median < 0
    assert slow.clip_score_change.median == slow.clip_score_loss.median == pytest.approx(0.1 / 3)
    higher = peers[0].model_copy(update={"clip_score": (0.4, 0.3, 0.3)})
    (duel,) = command._duels([drawn("plain", "diffusers", 1.0, 0.0), higher, ours])
    assert (duel.clip_score_change.median, duel.clip_score_loss.median) == pytest.approx((0.0, -0.1 / 3))


def test_a_student_and_a_schedule_draw_in_another_runtime_what_they_draw_here(
    smallest_pipeline: Path, tmp_path: Path
) -> None:
    family, setup = load_family(str(smallest_pipeline)), PictureSetup(weights=str(smallest_pipeline))
    unet = load_unet(family, str(smallest_pipeline))
    edit = ReplaceUnit(unit="down_blocks.0.attentions.0", with_="no_feed_forward")
    plan = PruningPlan(family=family.name, edits=(edit,)).save(tmp_path / "plan-0.9.json")
    pipe = pipeline(family, unet, setup)
    levers = [Levers(runtime="onnxruntime")]
    alone, by_teacher, fast = command._ours(pipe, family, setup, 3, str(plan), ["every_n:n=2"], levers)
    assert (alone.title, fast.title) == ("student plan-0.9", "onnxruntime fp32 plan-0.9, every_n:n=2")
    assert by_teacher.title == "onnxruntime fp32 teacher, every_n:n=2"
    options = {"num_inference_steps": 3, "guidance_scale": family.guidance_scale}
    own = command._draw(pipe, fast, ["a heart"], 0, options)
    student = pipeline(family, build(unet, read_plan(str(plan), unet, family.name))[0], setup)
    expected = command._draw(student, contestants.by_preset("every_n:n=2", 3), ["a heart"], 0, options)
    assert torch.allclose(own, expected, atol=1e-3)
    full = command._draw(student, contestants.plain(), ["a heart"], 0, options)
    assert torch.equal(command._draw(pipe, alone, ["a heart"], 0, options), full)
    assert not torch.equal(full, command._draw(pipe, contestants.plain(), ["a heart"], 0, options))
    assert pipe.unet is unet


def test_equal_is_what_stays_within_five_per_cent_with_its_whole_interval() -> None:
    rng = np.random.default_rng(0)
    halves, found, scores = 10 + 0.1 * rng.standard_normal(64), rng.random(500) < 0.6, 0.3 + 0.02 * rng.random(500)

    def judged(shift: float, own_noise: float) -> Drawn:
        noisy = scores + own_noise * rng.standard_normal(500)
        distances = Judged(value=10.0 + shift, of="halves", samples=tuple(halves + shift))
        recall = Judged(value=float(found.mean()), of="pictures", samples=tuple(found.astype(float)))
        return drawn("some", "ours", 1.0, 0.0).model_copy(
            update={"clip_score": tuple(noisy), "judged": {"frechet_distance": distances, "recall_at_1": recall}}
        )

    plain = judged(0.0, 0.0)
    alike = command._beside(judged(0.4, 0.001), plain)
    assert [alike[name].equal for name in EQUIVALENT] == [True, True, True]
    assert alike["frechet_distance"].difference.median == pytest.approx(0.4)
    assert alike["frechet_distance"].allowed == pytest.approx(0.5)
    assert alike["recall_at_1"].allowed == 0.03
    other = command._beside(judged(0.6, 0.3), plain)  # the scores' mean is near enough, and its interval is not
    assert [other[name].equal for name in EQUIVALENT] == [False, False, True]
