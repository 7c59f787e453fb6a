"""Times each replacement against the unit that it replaces, in pairs, at the size of a family.

    python reports/networks.py -o reports/sd15/networks.json

Self-attentions by themselves and in their Transformer unit, at every resolution that has attention; CLME-CondConv
against its plain ResNet at the highest one, gated by the input at batch 1, 2 and 8, and folded for timesteps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from asdm import measure, models, surgery, terminal, units
from asdm.families import Family, load_family
from asdm.files import Frozen, check_writable, utc_now
from asdm.measure import latency, paired_ratio
from asdm.options import this_command
from asdm.plan import ReplaceUnit
from asdm.replacements.cond_conv import fold
from asdm.results import Estimate, Latency, Run

ATTENTIONS = ("gri_attention", "kv_downsample")
BATCHES = (1, 2, 8)
TIMESTEPS = tuple(range(21, 1000, 33))  # thirty, as an image takes


class NetworkCase(Frozen):
    """One replacement against what it replaces; a ratio is replacement / original."""

    unit: str
    replacement: str
    level: Literal["unit", "attention"]
    batch: int
    channels: int
    height: int
    original_latency_s: Latency
    latency_s: Latency
    latency_ratio: Estimate
    speed_up: Estimate


class Networks(Run):
    """`asdm.networks/1`: replacements against their units, in pairs."""

    SCHEMA: ClassVar[str] = "asdm.networks/1"
    schema_: Literal["asdm.networks/1"] = Field("asdm.networks/1", alias="schema")
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


def measured(family: Family, threads: int | None, budget_s: float, tell: Callable[..., None], command: str) -> Networks:
    """Every pair of a family, with random weights on the CPU, `budget_s` seconds each."""
    with measure.quiet_torch(threads) as used:
        cases = []
        for pair in pairs(family):
            tell(f"{pair.unit}: {pair.replacement}, {pair.level}, batch {pair.batch}", len(cases), None)
            cases.append(_time(pair, budget_s))
        facts = measure.environment("cpu", used)
    return Networks(
        created_utc=utc_now(),
        command=command,
        family=family.name,
        dtype="fp32",
        device="cpu",
        threads=used,
        cases=tuple(cases),
        environment=facts,
    )


def pairs(family: Family) -> Iterator[Pair]:
    """The pairs one after the other; only the blocks that are timed take memory."""
    unet: Any = models.meta_unet(family)
    models.materialise(unet.time_embedding)
    yield from _attention_pairs(unet, family)
    yield from _convolution_pairs(unet, family)


def _attention_pairs(unet: Any, family: Family) -> Iterator[Pair]:
    """The first Transformer of every down block, as a unit and as its self-attention alone."""
    for block, module in units.iter_blocks(unet):
        fqn = f"{block}.attentions.0"
        if not block.startswith("down_blocks.") or fqn not in {unit.fqn for unit in units.iter_units(unet)}:
            continue
        models.materialise(module)
        unit, height = unet.get_submodule(fqn), _height(family, block)
        x = torch.randn(1, unit.in_channels, height, height)
        text = models.unet_inputs(family)["encoder_hidden_states"]
        for name in ATTENTIONS:
            new = surgery.replacement_for(unet, ReplaceUnit(unit=fqn, with_=name))
            new(x, encoder_hidden_states=text)  # tells the attention its size
            about = (1, unit.in_channels, height)
            yield Pair(fqn, name, "unit", *about, unit, new, (x,), {"encoder_hidden_states": text})
            tokens = torch.randn(1, height * height, unit.in_channels)
            (parent, place), (host, _) = (next(units.self_attentions(one)) for one in (unit, new))
            yield Pair(fqn, name, "attention", *about, getattr(parent, place), getattr(host, place), (tokens,), {})


def _convolution_pairs(unet: Any, family: Family) -> Iterator[Pair]:
    """The first ResNet of the shallowest down block and the last of its mirror: what CLME is for."""
    shape = units.topology(unet)
    down, up = shape.down_blocks[0], shape.up_blocks[-1]
    for block, layer in ((down, 0), (up, shape.layers(up)[-1])):
        models.materialise(unet.get_submodule(block))
        fqn, height = f"{block}.resnets.{layer}", _height(family, down)
        plain = unet.get_submodule(fqn)

        def clme(gate: str, fqn: str = fqn) -> nn.Module:
            return surgery.replacement_for(unet, ReplaceUnit(unit=fqn, with_="cond_conv", options={"gate": gate}))

        def pair(
            name: str, batch: int, new: nn.Module, fqn: str = fqn, plain: Any = plain, height: int = height
        ) -> Pair:
            time = units.time_embeddings(unet, [TIMESTEPS[0]]).expand(batch, -1).contiguous()
            x = torch.randn(batch, plain.in_channels, height, height)
            return Pair(fqn, name, "unit", batch, plain.in_channels, height, plain, new, (x, time), {})

        by_input, by_time = clme("input"), clme("timestep")
        for batch in BATCHES:
            yield pair("cond_conv by input", batch, by_input)
        yield pair("cond_conv by timestep", 1, by_time)
        for timesteps in (TIMESTEPS[:1], TIMESTEPS):
            with surgery.swapped(unet, {fqn: by_time}):
                folded = fold(unet, timesteps)
            yield pair(f"cond_conv folded for {len(timesteps)}", 1, folded.get_submodule(fqn))


def _height(family: Family, block: str) -> int:
    return family.latent // 2 ** int(block.partition(".")[2])


def _time(pair: Pair, budget_s: float) -> NetworkCase:
    clock = measure.HostClock()
    calls = {
        name: (lambda module=module: measure.timed(lambda: module(*pair.args, **pair.kwargs), clock))
        for name, module in (("original", pair.original), ("new", pair.new))
    }
    for call in calls.values():
        measure.warm_up(call, budget_s=budget_s / 10)
    samples = measure.interleave(
        calls,
        ("original", "new", "new", "original"),
        clock,
        min_rounds=10,
        budget_s=budget_s,
        enough=lambda s: (
            measure.relative_half_width([n / o for n, o in zip(s["new"], s["original"], strict=True)]) < 0.005
        ),
    )
    return NetworkCase(
        unit=pair.unit,
        replacement=pair.replacement,
        level=pair.level,
        batch=pair.batch,
        channels=pair.channels,
        height=pair.height,
        original_latency_s=latency(samples["original"]),
        latency_s=latency(samples["new"]),
        latency_ratio=paired_ratio(samples["new"], samples["original"]),
        speed_up=paired_ratio(samples["original"], samples["new"]),
    )


def row(case: NetworkCase) -> dict[str, str]:
    """A line of the printed table."""
    ratio = case.latency_ratio
    return {
        "unit": case.unit,
        "replacement": case.replacement,
        "level": case.level,
        "batch": str(case.batch),
        "map": f"{case.channels}×{case.height}×{case.height}",
        "original ms": f"{case.original_latency_s.median * 1e3:.2f}",
        "new ms": f"{case.latency_s.median * 1e3:.2f}",
        "ratio": f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
        "speed-up": f"{case.speed_up.median:.2f}",
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, save, print."""
    parser = argparse.ArgumentParser(description="Times each replacement against its unit, in pairs.")
    parser.add_argument("--family", default="sd15", help="a family or a diffusers folder")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--threads", type=int, help="CPU threads; default: what torch takes")
    parser.add_argument("--time-budget", type=float, default=30.0, help="seconds for each pair")
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    chosen = parser.parse_args(arguments)
    check_writable(chosen.output, chosen.force)
    with terminal.progress("Comparing") as tell:
        command = this_command("python reports/networks.py")
        found = measured(load_family(chosen.family), chosen.threads, chosen.time_budget, tell, command)
    found.save(chosen.output, chosen.force)
    terminal.emit([row(case) for case in found.cases], terminal.Format.table)
    terminal.say(f"Wrote {chosen.output}")


if __name__ == "__main__":
    main()
