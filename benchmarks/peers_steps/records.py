"""The result of the comparison across steps."""

from __future__ import annotations

from pydantic import Field

from asdm.records.measurement import Estimate
from asdm.utils.io import Frozen, Record, later


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
    frechet_distance: Estimate | None = later(None)  # to the teacher's pictures
    steps: tuple[str, ...] = later(())  # of a planned schedule


class Duel(Frozen):
    """One of our schedules against a peer that is no faster: peer less ours per picture; above 0, ours is better.

    CLIP scores are ours less the peer's. Means with 95 % bootstrap intervals over the pictures. A few pictures that
    turn into another one make up most of a mean, so the geometric mean of ours / peer stands beside it; below 1, ours
    is better.
    """

    ours: str
    peer: str
    our_ratio: float
    peer_ratio: float
    latent_mse: Estimate
    latent_mse_ratio: Estimate
    clip_score: Estimate


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
