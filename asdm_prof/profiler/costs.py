"""`asdm-prof flops`: exact parameters and MACs of a family's UNet (`asdm.flops/1`), and of one image (Fig. 1)."""

from __future__ import annotations

from typing import Any

from asdm.models import example_inputs, execution, loading
from asdm.models.components import components_of, count_call
from asdm.models.families import Family, load_family
from asdm.models.settings import Setup
from asdm.records.measurement import Macs, mac_unit
from asdm.unet import blocks, config, flops
from asdm.utils.sizes import Size

STEPS, GUIDANCE_CALLS = 30, 2  # of one image, as the paper counts it (§3.2)
RULES = ("thop",)


def flops_of(
    name: str, batch: int = 1, size: Size | None = None, like: str | None = None, config_of: str | None = None
) -> dict[str, Any]:
    """The `asdm.flops/1` JSON of a family; raises ValueError for an unknown family, size or rule."""
    if like not in (None, *RULES):
        raise ValueError(f"unknown rule {like!r} for --like; choose from {', '.join(RULES)}.")
    execution.check_setup(Setup(batch=batch))
    family = load_family(name, config_of)
    unet = loading.meta_unet(family)
    parts = list(blocks.iter_parts(unet))
    counted = flops.count(unet, (), example_inputs.unet_inputs(family, batch, size, "meta"), parts)
    rows: list[dict[str, Any]] = [
        {"fqn": part.fqn, "label": part.label, "kind": part.kind, "params": part.params}
        | _macs(counted.by_part[part.fqn], counted.layer_norm_by_part.get(part.fqn, 0), like)
        for part in parts
    ]
    total = {"params": counted.params} | _macs(counted.total, sum(counted.layer_norm_by_part.values()), like)
    rest = {key: total[key] - sum(row[key] for row in rows) for key in total}
    if any(rest.values()):
        rows.append({"fqn": blocks.OTHER, "label": blocks.OTHER, "kind": "glue"} | rest)
    return {
        "schema": "asdm.flops/1",
        "family": family.name,
        "title": family.title,
        "batch": batch,
        "size": size or family.size,
        "like": like,
        "total": total,
        "units": [row for row in rows if row["kind"] != "glue"],
        "glue": [row for row in rows if row["kind"] == "glue"],
        "components": component_costs(family, size, total if batch == 1 else None, like),
        "uncounted_ops": sorted(counted.uncounted_ops),
        "note": config.note(family.unet),
    }


def _macs(macs: Macs, layer_norm_elements: int, like: str | None) -> dict[str, int]:
    """Columns of one row; thop's rule has no attention, and a column for its LayerNorms."""
    columns = {"conv_macs": macs.conv_macs, "linear_macs": macs.linear_macs}
    if like == "thop":
        total = flops.thop_macs(macs, layer_norm_elements)
        columns |= {"attention_macs": 0, "layer_norm_macs": 4 * layer_norm_elements}
    else:
        total = macs.macs
        columns |= {"attention_macs": macs.attention_macs}
    return {"macs": total, "flops": 2 * total} | columns


def component_costs(
    family: Family, size: Size | None = None, unet: dict[str, int] | None = None, like: str | None = None
) -> list[dict[str, Any]]:
    """Text encoder, UNet and VAE decoder: parameters, MACs of a call, calls per image."""
    unet = unet or flops_of(family.name, 1, size, like)["total"]
    rows = [{"name": "unet", "params": unet["params"], "macs": unet["macs"], "calls": STEPS * GUIDANCE_CALLS}]
    for component in components_of(family, size):
        counted = count_call(component)
        macs = counted.thop_macs if like == "thop" else counted.total.macs
        rows.append({"name": component.name, "params": counted.params, "macs": macs, "calls": component.calls})
    return rows


def unit_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table: parameters in M, MACs in G or M, share of the total."""
    total = result["total"]
    macs, unit = mac_unit(total["macs"])
    rows = [*result["units"], *result["glue"], {"fqn": "total"} | total]
    return [
        {
            "unit": row["fqn"],
            "params M": f"{row['params'] / 1e6:.2f}",
            unit: f"{row['macs'] / macs:.2f}",
            "conv": f"{row['conv_macs'] / macs:.2f}",
            "linear": f"{row['linear_macs'] / macs:.2f}",
            "attention": f"{row['attention_macs'] / macs:.2f}",
            "%": f"{100 * row['macs'] / total['macs']:.1f}",
        }
        for row in rows
    ]


def component_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Parameters and computation of one image: 30 steps with classifier-free guidance."""
    whole = sum(row["macs"] * row["calls"] for row in result["components"])
    return [
        {
            "component": row["name"],
            "params M": f"{row['params'] / 1e6:.1f}",
            "GMAC a call": f"{row['macs'] / 1e9:.1f}",
            "calls": str(row["calls"]),
            "GMAC an image": f"{row['macs'] * row['calls'] / 1e9:.0f}",
            "%": f"{100 * row['macs'] * row['calls'] / whole:.1f}",
        }
        for row in result["components"]
    ]
