"""The comparison across steps: contestants leave a pipeline as it was, and duels are at equal latency."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from asdm.models.execution import RANDOM
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.records.measurement import Estimate
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
    titles = [one.title for one in contestants.all_of(30, {})]
    assert len(titles) == len({*titles})


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
