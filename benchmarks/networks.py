"""Times each replacement against the unit that it replaces, in pairs, at the size of a family.

    python -m benchmarks.networks -o reports/sd15/networks.json
    python -m benchmarks.networks --all --processes 3 --time-budget 2 -o reports/sd15/replacements.json

Self-attentions by themselves and in their Transformer unit, at every resolution that has attention; CLME-CondConv
against its plain ResNet at the highest one, gated by the input at batch 1, 2 and 8, and folded for timesteps. With
`--all`, every replacement with each of its settings, in a Transformer unit and a ResNet of every resolution.

Everything is measured in several fresh processes, and a ratio is the median of theirs: a convolution's code is compiled
when it is first called, and its place in memory changes its speed by some per cent, rarely by much more, until the
process ends. More calls in one process cannot show that (benchmarks/placement.py does).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from torch import nn

from asdm.cli.options import Force
from asdm.measure import clocks, machine, repeats, statistics
from asdm.measure.statistics import estimate, latency, paired_ratio
from asdm.models import example_inputs, loading
from asdm.models.families import Family, load_family
from asdm.plan.edits import ReplaceUnit
from asdm.records.measurement import Estimate, Latency, Run
from asdm.unet import blocks, replacements, surgery
from asdm.unet.replacements.cond_conv import fold
from asdm.utils.io import check_writable
from asdm.utils.record import Frozen
from benchmarks.script import FamilyName, JsonFile, Threads, finish, in_fresh_processes, run, run_fields

ATTENTIONS = ("gri_attention", "kv_downsample")
KINDS = ("resnet", "transformer")
BATCHES = (1, 2, 8)
TIMESTEPS = tuple(range(21, 1000, 33))  # thirty, as an image takes


class Measured(Frozen):
    """What one process measured of a pair; the i-th samples of both are neighbours in time."""

    original_latency_s: Latency
    latency_s: Latency
    latency_ratio: Estimate


class NetworkCase(Frozen):
    """One replacement against what it replaces; a ratio is replacement / original, over the processes' medians."""

    unit: str
    replacement: str
    level: Literal["unit", "attention"]
    batch: int
    channels: int
    height: int
    latency_ratio: Estimate
    speed_up: Estimate
    processes: tuple[Measured, ...]


class Networks(Run, schema="asdm.networks/2"):
    """`asdm.networks/2`: replacements against their units, in pairs, in several processes."""

    cases: tuple[NetworkCase, ...]


@dataclass(frozen=True)
class Pair:
    """Two modules that take the same arguments."""

    unit: str
    replacement: str
    level: Literal["unit", "attention"]
    batch: int
    channels: int
    height: int
    original: nn.Module
    new: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def time_pairs(name: str, threads: int | None, budget_s: float, everything: bool = False) -> Networks:
    """Every pair of a family, with random weights on the CPU, `budget_s` seconds each, in this process."""
    family = load_family(name)
    with machine.quiet_torch(threads) as used:
        cases = tuple(_time(pair, budget_s) for pair in (all_pairs if everything else pairs)(family))
        return Networks(**run_fields("networks", family.name, used), cases=cases)


def combine(turns: list[Networks]) -> Networks:
    """The record of all processes."""
    cases = tuple(_over_processes(same) for same in zip(*(turn.cases for turn in turns), strict=True))
    last = turns[-1]
    return Networks(**run_fields("networks", last.family, last.threads, environment=last.environment), cases=cases)


def _over_processes(same: tuple[NetworkCase, ...]) -> NetworkCase:
    processes = tuple(measured for case in same for measured in case.processes)
    if len(processes) == 1:
        return same[0]
    ratios = [measured.latency_ratio.median for measured in processes]
    speed_up = estimate([1 / ratio for ratio in ratios])
    return same[0].model_copy(update={"latency_ratio": estimate(ratios), "speed_up": speed_up, "processes": processes})


def pairs(family: Family) -> Iterator[Pair]:
    """The pairs one after the other; only the blocks in use take memory."""
    unet: Any = loading.meta_unet(family)
    loading.materialise(unet.time_embedding)
    yield from _attention_pairs(unet, family)
    yield from _convolution_pairs(unet, family)


def _attention_pairs(unet: Any, family: Family) -> Iterator[Pair]:
    """The first Transformer of every down block, as a unit and as its self-attention alone."""
    for block, module in blocks.iter_blocks(unet):
        fqn = f"{block}.attentions.0"
        if not block.startswith("down_blocks.") or fqn not in {unit.fqn for unit in blocks.iter_units(unet)}:
            continue
        loading.materialise(module)
        unit, height = unet.get_submodule(fqn), _height(family, block)
        x = torch.randn(1, unit.in_channels, height, height)
        text = example_inputs.unet_inputs(family)["encoder_hidden_states"]
        for name in ATTENTIONS:
            new = surgery.replacement_for(unet, ReplaceUnit(unit=fqn, with_=name))
            new(x, encoder_hidden_states=text)  # sets the attention's height and width
            shape = (1, unit.in_channels, height)
            yield Pair(fqn, name, "unit", *shape, unit, new, (x,), {"encoder_hidden_states": text})
            tokens = torch.randn(1, height * height, unit.in_channels)
            (parent, place), (host, _) = (next(blocks.self_attentions(one)) for one in (unit, new))
            yield Pair(fqn, name, "attention", *shape, getattr(parent, place), getattr(host, place), (tokens,), {})


def _convolution_pairs(unet: Any, family: Family) -> Iterator[Pair]:
    """The first ResNet of the shallowest down block and the last of its mirror: what CLME is for."""
    shape = blocks.topology(unet)
    down, up = shape.down_blocks[0], shape.up_blocks[-1]
    for block, layer in ((down, 0), (up, shape.layers(up)[-1])):
        loading.materialise(unet.get_submodule(block))
        fqn, height = f"{block}.resnets.{layer}", _height(family, down)
        plain = unet.get_submodule(fqn)
        by_input, by_time = (
            surgery.replacement_for(unet, ReplaceUnit(unit=fqn, with_="cond_conv", options={"gate": gate}))
            for gate in ("input", "timestep")
        )
        cases = [("cond_conv by input", batch, by_input) for batch in BATCHES]
        cases.append(("cond_conv by timestep", 1, by_time))
        for timesteps in (TIMESTEPS[:1], TIMESTEPS):
            with surgery.swapped(unet, {fqn: by_time}):
                folded: Any = fold(unet, timesteps).get_submodule(fqn)
            if len(timesteps) > 1:
                folded.conv1.timesteps.choose(timesteps[0])  # as the UNet does once a call
            cases.append((f"cond_conv folded for {len(timesteps)}", 1, folded))
        for name, batch, new in cases:
            time = blocks.time_embeddings(unet, [TIMESTEPS[0]]).expand(batch, -1).contiguous()
            x = torch.randn(batch, plain.in_channels, height, height)
            yield Pair(fqn, name, "unit", batch, plain.in_channels, height, plain, new, (x, time), {})


def all_pairs(family: Family) -> Iterator[Pair]:
    """The last ResNet and the first Transformer of every down block against all that they may become."""
    unet: Any = loading.meta_unet(family)
    loading.materialise(unet.time_embedding)
    text = example_inputs.unet_inputs(family)["encoder_hidden_states"]
    time = blocks.time_embeddings(unet, [TIMESTEPS[0]])
    names = replacements.names_of("all")
    for block, module in blocks.iter_blocks(unet):
        if not block.startswith("down_blocks."):
            continue
        loading.materialise(module)
        kinds = {kind: [u.fqn for u in blocks.iter_units(unet) if (u.block, u.kind) == (block, kind)] for kind in KINDS}
        for edit in surgery.applicable(unet, names, [*kinds["resnet"][-1:], *kinds["transformer"][:1]]):
            unit, height = unet.get_submodule(edit.unit), _height(family, block)
            x = torch.randn(1, unit.in_channels, height, height)
            how: Any = ((x,), {"encoder_hidden_states": text}) if edit.unit in kinds["transformer"] else ((x, time), {})
            options = ", ".join(f"{key} {value}" for key, value in edit.options.items())
            name = f"{edit.with_} ({options})" if options else edit.with_
            new = surgery.replacement_for(unet, edit)
            yield Pair(edit.unit, name, "unit", 1, unit.in_channels, height, unit, new, *how)


def _height(family: Family, block: str) -> int:
    return family.latent // 2 ** int(block.partition(".")[2])


def _time(pair: Pair, budget_s: float) -> NetworkCase:
    clock = clocks.HostClock()
    calls = {
        name: partial(clocks.timed, partial(module, *pair.args, **pair.kwargs), clock)
        for name, module in (("original", pair.original), ("new", pair.new))
    }
    for call in calls.values():
        repeats.warm_up(call, budget_s=budget_s / 10)

    def precise(samples: dict[str, list[float]]) -> bool:
        return statistics.relative_half_width(np.divide(samples["new"], samples["original"])) < 0.005

    pattern = ("original", "new", "new", "original")
    samples = repeats.interleave(calls, pattern, clock, min_rounds=10, budget_s=budget_s, enough=precise)
    measured = Measured(
        original_latency_s=latency(samples["original"]),
        latency_s=latency(samples["new"]),
        latency_ratio=paired_ratio(samples["new"], samples["original"]),
    )
    return NetworkCase(
        **{name: getattr(pair, name) for name in ("unit", "replacement", "level", "batch", "channels", "height")},
        latency_ratio=measured.latency_ratio,
        speed_up=paired_ratio(samples["original"], samples["new"]),
        processes=(measured,),
    )


def row(case: NetworkCase) -> dict[str, str]:
    """A line of the printed table; the milliseconds are the first process's."""
    ratio, ratios = case.latency_ratio, [measured.latency_ratio.median for measured in case.processes]
    call = {"attention": "attention", "unit": f"batch {case.batch}"}[case.level]
    return {
        "unit": case.unit,
        "replacement": f"{case.replacement}, {call}",
        "original ms": f"{case.processes[0].original_latency_s.median * 1e3:.2f}",
        "ratio": f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
        "processes": f"{min(ratios):.3f}–{max(ratios):.3f}",
        "speed-up": f"{case.speed_up.median:.2f}",
    }


def main(
    output: JsonFile,
    family: FamilyName = "sd15",
    threads: Threads = None,
    processes: Annotated[int, typer.Option(help="Fresh processes that each measure all pairs.")] = 7,
    time_budget: Annotated[float, typer.Option(help="Seconds for each pair in each process.")] = 4.0,
    everything: Annotated[
        bool, typer.Option("--all", help="Every replacement with each setting, at every resolution.")
    ] = False,
    keep_memory: Annotated[bool, typer.Option("--keep-memory", help="Tell glibc to keep freed memory.")] = False,
    force: Force = False,
) -> None:
    """Time each replacement against the unit that it replaces, in pairs, in several fresh processes."""
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}.")
    check_writable(output, force)
    given = (family, threads, time_budget, everything)
    turns = in_fresh_processes(time_pairs, *given, keep_memory=[keep_memory] * processes)
    result = combine(turns)
    finish(result, output, force, map(row, result.cases))


if __name__ == "__main__":
    run(main)
