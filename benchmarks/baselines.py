"""What others would prune, as plans that are judged on the same damage and latency as ours.

Greedy by time saved per damage; BK-SDM's three and the paper's hand-made assembly (presets); SnapFusion's "no attention
at the highest resolution"; SSD-1B's fewer Transformers where maps are small; random legal plans.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from asdm.plan.edits import AnyEdit, RemoveBlock, RemoveUnit
from asdm.plan.legality import resolve
from asdm.plan.presets import PRESETS, without_layers
from asdm.plan.topology import Topology
from asdm_prof.planner import plan
from asdm_prof.planner.problem import Problem
from asdm_prof.records import Profile

HAND_MADE = ("a_sdm", "bk_sdm_base", "bk_sdm_small", "bk_sdm_tiny")
Edits = tuple[AnyEdit, ...]


def fixed(shape: Topology) -> dict[str, Edits]:
    """Plans that do not depend on a budget, by name; those that do not fit the UNet are left out."""
    plans: dict[str, Edits] = {}
    for make in (*(PRESETS[name] for name in HAND_MADE), no_attention_at_the_top, ssd_like):
        name = make.__name__
        try:
            edits = tuple(make(shape))
            resolve(shape, edits)
        except (ValueError, IndexError):
            continue
        if edits:
            plans[name] = edits
    return plans


def no_attention_at_the_top(shape: Topology) -> Edits:
    """SnapFusion's finding as a plan: no Transformer in the blocks of the highest resolution."""
    top = (shape.down_blocks[0], shape.mirror(shape.down_blocks[0]))
    return tuple(RemoveUnit(unit=u.fqn) for u in shape.units if u.kind == "transformer" and u.block in top)


def ssd_like(shape: Topology) -> Edits:
    """SSD-1B's kind of plan (arXiv:2401.02677) for one Transformer a layer: few where maps are small.

    SSD-1B has SDXL's layers, with fewer Transformers in its deep blocks. Here none is left in the middle, and one in
    each block of the deepest level that has any.
    """
    transformers = [u for u in shape.units if u.kind == "transformer"]
    deepest = [b for b in shape.down_blocks if any(u.block == b for u in transformers)][-1]
    gone = [u.fqn for u in transformers if u.block == "mid_block"]
    for block in (deepest, shape.mirror(deepest)):
        gone += [u.fqn for u in transformers if u.block == block][1:]
    return tuple(RemoveUnit(unit=fqn) for fqn in gone)


def bk_style(profile: Profile, ratio: float) -> Edits:
    """BK-SDM's rule at a latency: of all plans by that rule, the one that the profile predicts nearest to `ratio`.

    The rule takes a layer from both blocks of a pair (Base: of every pair), the middle block (Small), and with that the
    deepest pair as a whole (Tiny).
    """
    ratios = ((edits, predicted_ratio(profile, edits)) for edits in _by_bk_rule(profile.topology))
    legal = [(edits, own) for edits, own in ratios if own is not None]  # another topology's deepest pair may be needed
    return min(legal, key=lambda one: abs(one[1] - ratio))[0]


def _by_bk_rule(shape: Topology) -> Iterator[Edits]:
    pairs = [down for down in shape.down_blocks if len(shape.layers(down)) > 1]
    chosen = itertools.chain.from_iterable(itertools.combinations(pairs, n) for n in range(len(pairs), -1, -1))
    for some in chosen:
        edits = tuple(without_layers(shape, some))
        if edits:
            yield edits
        if "mid_block" in shape.blocks:
            yield (*edits, RemoveBlock(block="mid_block"))
            if (deepest := shape.down_blocks[-1]) not in some:
                yield (*edits, RemoveBlock(block="mid_block"), RemoveBlock(block=deepest))


def greedy(problem: Problem, ratio: float) -> Edits | None:
    """The choices that save most time per damage, until `ratio` is met; None where no more can be added before."""
    chosen: list[int] = []
    while sum(problem.choices[i].saving for i in chosen) < 1 - ratio:
        taken = {fqn for i in chosen for fqn in problem.choices[i].touches}
        free = [i for i, c in enumerate(problem.choices) if c.saving > 0 and not c.touches & taken]
        if not free:
            return None
        chosen.append(max(free, key=lambda i: (problem.choices[i].saving / max(problem.choices[i].damage, 1e-30), -i)))
    return problem.edits(chosen)


def random(problem: Problem, ratio: float, n: int, seed: int) -> list[Edits]:
    """`n` random legal plans at or just below `ratio`."""
    rng = np.random.default_rng([seed, round(1e6 * ratio)])
    return [plan.draw_plan(problem, ratio, rng) for _ in range(n)]


def at(problem: Problem, ratio: float, fixed_plans: Mapping[str, Edits], n: int, seed: int) -> dict[str, Edits]:
    """Every baseline that is within a latency budget by the profile, by name."""
    predicted = {name: predicted_ratio(problem.profile, edits) for name, edits in fixed_plans.items()}
    plans = {name: fixed_plans[name] for name, known in predicted.items() if known is not None and known <= ratio}
    if (edits := greedy(problem, ratio)) is not None:
        plans["greedy"] = edits
    return plans | {f"random {i + 1}": edits for i, edits in enumerate(random(problem, ratio, n, seed))}


def predicted_ratio(profile: Profile, edits: Edits) -> float | None:
    """Latency by the profile, student / teacher; None with a replacement that it did not time."""
    try:
        return plan.price(profile, edits).ratio
    except ValueError:
        return None
