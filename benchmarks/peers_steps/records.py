"""The result of the comparison across steps."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from asdm.records.measurement import Estimate
from asdm.utils.record import Frozen, Record, later
from benchmarks.equivalence import Judged


class Beside(Frozen):
    """A contestant's metric less that of the plain images, in pairs, and whether the two cannot be told apart."""

    difference: Estimate
    allowed: float  # 5 % of the plain images' value; of R@1, 0.03
    equal: bool  # the whole interval is smaller


class Drawn(Frozen):
    """One contestant: what it is, its whole image's latency to the plain one's in pairs, and every picture's loss."""

    name: str
    setting: str
    of: str  # ours, preset (restated here), or the package with its version
    image_latency_s: Estimate | None = None
    image_latency_ratio: Estimate | None = None
    pairs: int = 0
    latent_mse: tuple[float, ...]  # of each picture's final latent to the teacher's
    clip_score: tuple[float, ...]
    steps: tuple[str, ...] = later(())  # of a planned schedule
    judged: dict[str, Judged] = later({})  # the other metrics, against real drawings
    beside: dict[str, Beside] = later({})  # metric → its difference from the plain images

    def metric(self, name: str) -> Judged | None:
        """A metric of its pictures."""
        if name == "clip_score":
            return Judged(value=float(np.mean(self.clip_score)), of="pictures", samples=self.clip_score)
        return self.judged.get(name)


class Duel(Frozen):
    """One of our schedules against a peer that is no faster: peer less ours per picture; above 0, ours is better.

    CLIP scores are ours less the peer's. Their changes and losses are the peer's less ours: by how much a picture's
    score differs from the plain picture's in either direction, and by how much it is below it, or 0 where it is above.
    Means with 95 % bootstrap intervals over the pictures. A few pictures that turn into another one make up most of a
    mean, so the geometric mean of ours / peer stands beside it; below 1, ours is better.
    """

    ours: str
    peer: str
    our_ratio: float
    peer_ratio: float
    latent_mse: Estimate
    latent_mse_ratio: Estimate
    clip_score: Estimate
    clip_score_change: Estimate | None = later(None)
    clip_score_loss: Estimate | None = later(None)


class PeersSteps(Record, schema="asdm.peers-steps/1"):
    """`asdm.peers-steps/1`: every contestant, and each peer against the schedule of ours at its latency."""

    created_utc: str
    command: str
    family: str
    dtype: str
    device: str
    threads: int
    steps: int
    sampler: str
    guidance_scale: float
    pictures: int
    captions: str  # data set and split
    contestants: tuple[Drawn, ...]
    duels: tuple[Duel, ...] = ()
    failed: dict[str, str] = Field(default_factory=dict)  # contestants that did not run → why
    environment: dict[str, str]
