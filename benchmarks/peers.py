"""Other tools' counts of SD 1.5's UNet beside the true ones: `make peers` writes reports/peers/sd15.json.

Each tool runs in a fresh process on the same UNet (random weights, 512×512, batch 1), as its documentation says; one
that does not install or run is listed with its error. The truth is tests/golden/sd15_unet.json, a closed form.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import time
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Annotated, Any

import typer

from asdm.measure import machine
from asdm.models import example_inputs, loading
from asdm.models.families import load_family
from asdm.unet import blocks, flops
from asdm.utils import console, io
from asdm.utils.record import read_json, utc_now
from benchmarks.script import ROOT, in_fresh_process, in_turn, put_into_results, run

FAMILY = "sd15"
GOLDEN = ROOT / "tests" / "golden" / "sd15_unet.json"
RESULT = ROOT / "reports" / "peers" / "sd15.json"
TOP = 5
Counts = tuple[float, dict[str, float]]  # MACs of the whole, and of every module by its name


# ---------------------------------------------------------------------------------------------- the tools


def asdm(unet: Any, inputs: dict[str, Any]) -> Counts:
    """This tool: on the meta device, attention included."""
    import torch
    from torch.utils._pytree import tree_map_only

    shapes = unet.to("meta")
    meta = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), inputs)
    counted = flops.count(shapes, (), meta, list(blocks.iter_parts(shapes)))
    return counted.total.macs, {fqn: macs.macs for fqn, macs in counted.by_part.items()}


def fvcore(unet: Any, inputs: dict[str, Any]) -> Counts:
    from fvcore.nn import FlopCountAnalysis

    class Positional(type(unet)):  # a trace takes tensors by position
        def forward(self, sample: Any, timestep: Any, text: Any) -> Any:
            return super().forward(sample, timestep, text, return_dict=False)

    unet.__class__ = Positional
    analysis = FlopCountAnalysis(unet, (inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"]))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analysis.total(), dict(analysis.by_module())  # its FLOP is one multiply-add


def thop(unet: Any, inputs: dict[str, Any]) -> Counts:
    from thop import profile

    args = (inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"])
    total, _, layers = profile(unet, inputs=args, verbose=False, ret_layer_info=True)

    def walk(rows: dict[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
        for name, (macs, _, below) in rows.items():
            yield prefix + name, macs
            yield from walk(below, f"{prefix}{name}.")

    return total, dict(walk(layers, ""))


def ptflops(unet: Any, inputs: dict[str, Any]) -> Counts:
    from ptflops import get_model_complexity_info

    printed = StringIO()
    total, _ = get_model_complexity_info(
        unet, (1,), input_constructor=lambda _: inputs, as_strings=False, print_per_layer_stat=True, ost=printed,
        flops_units="MMac", output_precision=6,
    )  # fmt: skip
    return total, {name: 1e6 * value for name, value in printed_counts(printed.getvalue(), "MMac")}


def calflops(unet: Any, inputs: dict[str, Any]) -> Counts:
    from calflops import calculate_flops, flops_counter

    by_name: dict[str, float] = {}

    class Pipeline(flops_counter.CalFlopsPipline):  # it forgets its modules' counts at the end
        def end_flops_calculate(self) -> None:
            from calflops.utils import get_module_macs

            by_name.update({name: get_module_macs(module) for name, module in unet.named_modules()})
            super().end_flops_calculate()

    flops_counter.CalFlopsPipline = Pipeline
    _, macs, _ = calculate_flops(unet, kwargs=inputs, print_results=False, output_as_string=False)
    return macs, by_name


def torchinfo(unet: Any, inputs: dict[str, Any]) -> Counts:
    from torchinfo import summary

    result = summary(unet, input_data=inputs, depth=100, verbose=0)
    by_name: dict[str, float] = {}
    path: list[str] = []
    for layer in result.summary_list:
        path[layer.depth - 1 :] = [layer.var_name] if layer.depth else []
        for depth in range(1, len(path) + 1) if layer.is_leaf_layer else ():
            name = ".".join(path[:depth])
            by_name[name] = by_name.get(name, 0) + layer.macs
    return result.total_mult_adds, by_name


def deepspeed(unet: Any, inputs: dict[str, Any]) -> Counts:
    from deepspeed.profiling.flops_profiler import FlopsProfiler
    from deepspeed.profiling.flops_profiler.profiler import get_module_macs

    profiler = FlopsProfiler(unet)
    profiler.start_profile()
    unet(**inputs)
    profiler.stop_profile()
    counts = profiler.get_total_macs(), {name: get_module_macs(module) for name, module in unet.named_modules()}
    profiler.end_profile()
    return counts


def torch_flop_counter(unet: Any, inputs: dict[str, Any]) -> Counts:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        unet(**inputs)
    by_name = {name.partition(".")[2]: sum(ops.values()) / 2 for name, ops in counter.get_flop_counts().items()}
    return counter.get_total_flops() / 2, by_name


TOOLS: dict[str, tuple[Callable[[Any, dict[str, Any]], Counts], str]] = {
    "asdm-prof flops": (asdm, "asdm-prof"),
    "fvcore": (fvcore, "fvcore"),
    "thop": (thop, "thop"),
    "ptflops": (ptflops, "ptflops"),
    "calflops": (calflops, "calflops"),
    "torchinfo": (torchinfo, "torchinfo"),
    "DeepSpeed flops profiler": (deepspeed, "deepspeed"),
    "torch FlopCounterMode": (torch_flop_counter, "torch"),
}


def printed_counts(text: str, unit: str) -> Iterator[tuple[str, float]]:
    """Module names and counts from a printed model: `(0-1): 2 x Linear(… 3.2 MMac …`, children indented by two."""
    paths: list[list[str]] = []
    for line in text.splitlines():
        opened = re.match(r"( +)\(([\w-]+)\): (?:(\d+) x )?\w+\(", line)
        if opened:
            depth = len(opened[1]) // 2
            first, _, last = opened[2].partition("-")
            names = [str(i) for i in range(int(first), int(last) + 1)] if opened[3] else [opened[2]]
            above = paths[depth - 2] if depth > 1 else [""]
            paths[depth - 1 :] = [[f"{prefix}{name}." for prefix in above for name in names]]
        count = re.search(rf"([\d.]+) {unit}\b", line)
        if count and paths and (opened or line.lstrip()[:1].isdigit()):
            yield from ((path.rstrip("."), float(count[1])) for path in paths[-1])


# ---------------------------------------------------------------------------------------------- one tool, all tools


def run_one(name: str) -> dict[str, Any]:
    """Count with one tool in this process; its seconds are the count's alone."""
    import torch

    count, package = TOOLS[name]
    family = load_family(FAMILY)
    unet, inputs = loading.load_unet(family), example_inputs.unet_inputs(family)
    del inputs["return_dict"]  # some tools move every argument to a device
    with torch.no_grad():
        started = time.perf_counter()
        total, by_name = count(unet, inputs)
        seconds = time.perf_counter() - started
    version = importlib.metadata.version(package)
    return judge(total, by_name, json.loads(GOLDEN.read_text())) | {"seconds": seconds, "version": version}


def judge(total: float, by_name: dict[str, float], golden: dict[str, Any]) -> dict[str, Any]:
    """Errors against the closed form, and how many of the true five costliest units a tool names."""
    truth = {fqn: row["macs"] for fqn, row in golden["units"].items() if ".resnets." in fqn or ".attentions." in fqn}
    counted = {fqn: by_name.get(fqn, 0) for fqn in truth}
    off = {fqn: counted[fqn] / macs - 1 for fqn, macs in truth.items()}
    worst = max(off, key=lambda fqn: abs(off[fqn]))
    top, true_top = (sorted(macs, key=lambda fqn: (-macs[fqn], fqn))[:TOP] for macs in (counted, truth))
    return {
        "macs": total,
        "total_error": total / golden["total"]["macs"] - 1,
        "worst_unit": worst,
        "worst_unit_error": off[worst],
        "costliest": top,
        "of_true_costliest": len({*top} & {*true_top}),
        "units": counted,
    }


def run_all() -> dict[str, Any]:
    """Every tool in a fresh process, one after the other."""
    golden = json.loads(GOLDEN.read_text())
    rows = []
    with console.progress("Counting", "tools") as tell:
        for name in in_turn(tuple(TOOLS), "with each tool", tell):
            try:
                rows.append({"name": name} | in_fresh_process(run_one, name))
            except ValueError as error:
                rows.append({"name": name, "error": str(error)})
    return {
        "schema": "asdm.peers/1",
        "created_utc": utc_now(),
        "family": FAMILY,
        "true_macs": golden["total"]["macs"],
        "tools": rows,
        "environment": machine.environment("cpu", 0) | {"threads": "torch's default"},
    }


def table(result: dict[str, Any]) -> str:
    """The table in docs/results.md."""
    lines = [
        "| tool | total MACs | total | worst unit | of the five costliest units | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["tools"]:
        if "error" in row:
            lines.append(f"| {row['name']} | does not run: {row['error'][:90].replace('|', '/')} | | | | |")
            continue
        lines.append(
            f"| {row['name']} {row['version']} | {row['macs'] / 1e9:.1f} G | {_percent(row['total_error'])} | "
            f"{_percent(row['worst_unit_error'])} | {row['of_true_costliest']} | {row['seconds']:.1f} |"
        )
    return "\n".join(lines)


def _percent(error: float) -> str:
    return "exact" if error == 0 else f"{100 * error:+.1f} %".replace("-", "−")


def main(
    readme: Annotated[bool, typer.Option("--readme", help="Only put the saved table into docs/results.md.")] = False,
) -> None:
    """Count SD 1.5's UNet with every tool, and put the table into docs/results.md."""
    if not readme:
        io.write_whole(RESULT, json.dumps(run_all(), indent=1, allow_nan=False) + "\n", force=True)
    put_into_results("peers", f"\n{table(read_json(RESULT))}\n")


if __name__ == "__main__":
    run(main)
