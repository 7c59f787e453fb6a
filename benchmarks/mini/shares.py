"""`python -m benchmarks.mini.shares`: where SD 1.5's and the mini's UNets have their parameters and MACs, by level.

The table in docs/results.md; seconds, on the meta device.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from asdm.models import example_inputs
from asdm.models.families import Family, load_family
from asdm.models.loading import meta_unet
from asdm.unet import blocks, flops
from benchmarks.mini.parts import SMALL
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


def count_shares(family: Family, size: int | None = None) -> Shares:
    """Count a family's UNet at `size` pixels, by default the family's own."""
    network = meta_unet(family)
    parts = list(blocks.iter_parts(network))
    counted = flops.count(network, (), example_inputs.unet_inputs(family, size=size, device="meta"), parts)
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


def table() -> str:
    """Markdown: a column for each UNet, a row for each level."""
    sd15, mini = load_family("sd15"), load_family("mini")
    columns = {
        f"{family.title}, {size} pixels": count_shares(family, size)
        for family, size in ((sd15, sd15.size), (mini, mini.size), (mini, SMALL))
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
