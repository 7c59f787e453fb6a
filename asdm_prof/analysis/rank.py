"""Which units are redundant (§1, Fig. 2): much latency, few parameters.

The paper reads redundancy off one picture: the shallow units take most of the time and hold almost none of
the parameters. As a number: redundancy = share of the latency ÷ share of the parameters. A unit at 10 takes
ten times the time that its size would suggest. In a UNet that halves its resolution and doubles its channels
per level this is high exactly where features are shallow, so no depth enters the formula.
"""

from __future__ import annotations

from asdm.records.measurement import Estimate
from asdm.utils.record import Frozen
from asdm_prof.records import Profile


class Ranked(Frozen):
    """A unit's place: units of one `tie_group` have overlapping intervals and cannot be distinguished."""

    rank: int
    tie_group: int
    fqn: str
    label: str
    kind: str
    latency_s: Estimate
    latency_share: Estimate
    params_share: float
    redundancy: Estimate


def rank(profile: Profile) -> list[Ranked]:
    """Units from most to least redundant, with tie groups."""
    scored = []
    for unit in profile.units:
        params_share = unit.params / profile.whole.params
        scored.append((unit, params_share, unit.share.scaled(1 / params_share)))
    scored.sort(key=lambda row: (-row[2].median, row[0].fqn))
    ranked: list[Ranked] = []
    group, leader = 0, None
    for place, (unit, params_share, redundancy) in enumerate(scored, 1):
        if leader is None or redundancy.high < leader.low:
            group, leader = group + 1, redundancy
        ranked.append(
            Ranked(
                rank=place,
                tie_group=group,
                fqn=unit.fqn,
                label=unit.label,
                kind=unit.kind,
                latency_s=Estimate(**unit.latency_s.model_dump(include={"median", "low", "high"})),
                latency_share=unit.share,
                params_share=params_share,
                redundancy=redundancy,
            )
        )
    return ranked
