"""`python -m benchmarks.mini.shares`: where SD 1.5's and the minis' UNets have their parameters and MACs, by level.

The table in docs/results.md; seconds, on the meta device.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from asdm.models import example_inputs
from asdm.models.families import Family, load_family
from asdm.models.loading import meta_unet
from asdm.unet import blocks, flops
from benchmarks.mini import captions
from benchmarks.mini.parts import SMALL, unet
from benchmarks.script import put_into_results, run

LEVELS = {  # blocks that work at one resolution; a sampler counts with the block that it belongs to
    "down_blocks.0 + up_blocks.3": ("down_blocks.0", "up_blocks.3"),
    "down_blocks.1 + up_blocks.2": ("down_blocks.1", "up_blocks.2"),
    "down_blocks.2 + up_blocks.1": ("down_blocks.2", "up_blocks.1"),
    "down_blocks.3 + mid_block + up_blocks.0": ("down_blocks.3", "mid_block", "up_blocks.0"),
}


@dataclass(frozen=True)
class Shares:
    """One call's cost at batch 1, and each level's part of it."""

    parameters: int
    macs: int
    parameter_share: dict[str, float]
    macs_share: dict[str, float]


def of(family: Family) -> Shares:
    """Count a family's UNet at the family's size."""
    network = meta_unet(family)
    parts = list(blocks.iter_parts(network))
    counted = flops.count(network, (), example_inputs.unet_inputs(family, device="meta"), parts)
    parameters: Counter[str] = Counter()
    macs: Counter[str] = Counter()
    for part in parts:
        level = next((name for name, members in LEVELS.items() if part.fqn.startswith(members)), "rest")
        parameters[level] += part.params
        macs[level] += counted.by_part[part.fqn].macs
    return Shares(
        counted.params,
        counted.total.macs,
        {level: parameters[level] / counted.params for level in LEVELS},
        {level: macs[level] / counted.total.macs for level in LEVELS},
    )


def second_edition(size: int = captions.SIZE) -> Family:
    """The mini that `benchmarks.mini` trains, at `size` pixels."""
    return replace(load_family("mini"), unet=unet.CONFIG, size=size)


def table() -> str:
    """Markdown: a column for each UNet, a row for each level."""
    columns = {
        "SD 1.5, 512 pixels": of(load_family("sd15")),
        f"the mini that ships, {SMALL} pixels": of(load_family("mini")),
        f"second edition, {SMALL} pixels": of(second_edition(SMALL)),
        f"second edition, {captions.SIZE} pixels": of(second_edition()),
    }
    lines = ["", "| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    lines.append("| parameters | " + " | ".join(f"{c.parameters / 1e6:.1f} M" for c in columns.values()) + " |")
    lines.append("| GMAC | " + " | ".join(f"{c.macs / 1e9:.3g}" for c in columns.values()) + " |")
    for level in LEVELS:
        shares = (f"{c.parameter_share[level]:.1%}, {c.macs_share[level]:.1%}" for c in columns.values())
        lines.append(f"| `{level}` | " + " | ".join(shares) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table of shares into docs/results.md."""
    put_into_results("shares", table())


if __name__ == "__main__":
    run(main)
