"""What pruning the channels of the whole UNet brings, by Torch-Pruning (extra `pruning`), on the axes of our plans.

    python -m benchmarks.pruning mini -o reports/mini/options/pruning.json

Every group of coupled channels is narrowed, the residual stream among them, where a plan narrows single units. A
channel counts by its weights' magnitude (group L2 norm) or by its importance to the output: Optimal Brain Damage, with
squared gradients of random projections of the output on calibration pictures (a diagonal Gauss–Newton, as the teacher's
own loss has no gradient against itself). Every group loses the same share, or the least important channels of the whole
network go, up to nine tenths of a group; Torch-Pruning scales magnitudes by their group's mean first, as it does by
default, and feed-forwards are ranked among themselves. Each network is then judged like a plan: mean squared error of
its output on held-out pictures, and latency against the teacher's in pairs. Nothing is trained afterwards.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from asdm.cli.options import Force
from asdm.measure import clocks, machine, repeats
from asdm.measure.statistics import paired_ratio
from asdm.models import example_inputs, loading
from asdm.models.sources import resolve
from asdm.records.measurement import Estimate, Run
from asdm.unet import flops
from asdm.utils import console
from asdm.utils.io import check_writable
from asdm.utils.record import Frozen
from asdm_prof.records import Interval
from asdm_prof.sensitivity.calibration import Calibration, make_calibration
from asdm_prof.sensitivity.measure import damage_of, squared
from asdm_prof.sensitivity.settings import SensitivitySettings
from benchmarks.script import Threads, finish, in_turn, run, run_fields

IMPORTANCES = ("magnitude", "importance to the output")
RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
PROJECTIONS = 2  # of every picture's outputs
JUDGED_ON = "held_out"
Gradients = dict[str, torch.Tensor]
MOST = 0.9  # of a group's channels, where the share is global


class Pruned(Frozen):
    """One network without some of its channels; ratios are its own over the teacher's."""

    importance: str
    everywhere_alike: bool
    channels: float  # share that goes
    params_ratio: float
    macs_ratio: float
    latency_ratio: Estimate
    damage: Interval


class Pruning(Run, schema="asdm.pruning/1"):
    """`asdm.pruning/1`: networks pruned as a whole."""

    weights_sha256: str
    prompts: int
    timesteps: tuple[int, ...]
    torch_pruning: str
    networks: tuple[Pruned, ...]


def main(
    family: Annotated[str, typer.Argument(help="Family or diffusers folder with weights.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="JSON file to write.")],
    prompts: Annotated[int, typer.Option(help="Held-out pictures to judge on.")] = 24,
    timesteps: Annotated[int, typer.Option(help="Noise levels per picture.")] = 8,
    channels: Annotated[list[float] | None, typer.Option(help="Shares of channels that go.")] = None,
    time_budget: Annotated[float, typer.Option(help="Seconds to time each network.")] = 8.0,
    data: Annotated[str | None, typer.Option(help="Captioned pictures; default: the family's.")] = None,
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Prune the whole UNet's channels by Torch-Pruning, and judge what is left."""
    check_writable(output, force)
    settings = SensitivitySettings(data=data, prompts=prompts, timesteps=timesteps, threads=threads)
    with (console.progress("Pruning", "networks") as tell, machine.quiet_torch(threads) as used,
          torch.inference_mode(False), torch.no_grad()):  # fmt: skip
        model, weights = resolve(family, settings, needs="benchmarks.pruning")
        settings = replace(settings, weights=weights)
        teacher: Any = loading.load_teacher(model, settings)
        judging = replace(settings, split=JUDGED_ON)
        calibration, held_out = (make_calibration(model, teacher, one) for one in (settings, judging))
        inputs = example_inputs.unet_inputs(model)
        expected = [teacher(**one)[0] for one in _by_prompt(held_out)]
        params, macs = _params(teacher), _macs(teacher, inputs)
        gradients = {"magnitude": None, "importance to the output": squared_gradients(teacher, calibration)}
        wanted = [(importance, alike, share) for importance in IMPORTANCES for alike in (True, False)
                  for share in channels or RATIOS]  # fmt: skip
        networks = []
        for importance, alike, share in in_turn(wanted, "networks", tell):
            student = pruned(teacher, inputs, gradients[importance], alike, share)
            networks.append(
                Pruned(
                    importance=importance,
                    everywhere_alike=alike,
                    channels=share,
                    params_ratio=_params(student) / params,
                    macs_ratio=_macs(student, inputs) / macs,
                    latency_ratio=latency_ratio(student, teacher, inputs, time_budget),
                    damage=damage(student, held_out, expected),
                )
            )
        result = Pruning(
            **run_fields("pruning", model.name, used),
            weights_sha256=loading.weights_sha256(teacher),
            prompts=prompts,
            timesteps=tuple(held_out.timesteps.tolist()),
            torch_pruning=machine.package_version("torch-pruning"),
            networks=tuple(networks),
        )
    finish(result, output, force, map(row, result.networks))


@torch.enable_grad()
def pruned(
    teacher: nn.Module, inputs: dict[str, Any], gradients: Gradients | None, alike: bool, share: float
) -> nn.Module:
    """A copy of the UNet without a share of its channels, by magnitude where there are no `gradients`.

    Raises ValueError without Torch-Pruning.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise ValueError("Torch-Pruning is not installed; pip install 'asdm-prof[pruning]'.") from error
    student: Any = copy.deepcopy(teacher).requires_grad_()
    if gradients is None:
        score = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    else:
        score = torch_pruning.importance.GroupHessianImportance(group_reduction="sum", normalizer=None)  # comparable
        for name, parameter in student.named_parameters():
            parameter.grad = gradients[name].clone()  # where Torch-Pruning reads them
    attentions = [part for part in student.modules() if isinstance(part, Attention)]
    # Both halves of a GEGLU lose the channels that either half would: half the share from each.
    gates = tuple(part for name, part in student.named_modules() if name.endswith("ff.net.0.proj"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters without a layer
        pruner = torch_pruning.pruner.BasePruner(
            student, {**inputs, "return_dict": False}, score, pruning_ratio=share, global_pruning=not alike,
            max_pruning_ratio=share if alike else MOST, pruning_ratio_dict={gates: share / 2},
            ignored_layers=[student.conv_out],
            num_heads={layer: part.heads for part in attentions for layer in (part.to_q, part.to_k, part.to_v)},
            output_transform=lambda output: output[0].sum(),
        )  # fmt: skip
        pruner.step()
    for part in student.modules():
        if isinstance(part, Downsample2D | Upsample2D):
            part.channels = part.conv.in_channels  # which they compare with what they are given
    student.zero_grad()
    return student.eval()


@torch.enable_grad()
def squared_gradients(teacher: nn.Module, data: Calibration) -> Gradients:
    """The mean square of the gradients of random projections of the output, by the parameter's name.

    Torch-Pruning's own `accumulate_grad` keeps the last gradient only.
    """
    generator, unet = torch.Generator().manual_seed(0), copy.deepcopy(teacher).requires_grad_()
    sums = {name: torch.zeros_like(parameter.data) for name, parameter in unet.named_parameters()}
    count = PROJECTIONS * len(data.noisy)
    for n in range(count):
        picture = n % len(data.noisy)
        output = unet(**data.inputs(slice(picture, picture + 1)))[0]
        unet.zero_grad()
        (output * torch.randn(output.shape, generator=generator)).sum().backward()
        for name, parameter in unet.named_parameters():
            if parameter.grad is not None:
                sums[name] += parameter.grad.square() / count
    return sums


def damage(student: nn.Module, data: Calibration, expected: list[torch.Tensor]) -> Interval:
    """E‖output of the student − output of the teacher‖² per element, as `asdm-prof sensitivity` measures it.

    `expected` are the teacher's outputs, prompt by prompt.
    """
    with torch.inference_mode():
        pairs = zip(_by_prompt(data), expected, strict=True)
        samples = [squared(student(**inputs)[0] - output) for inputs, output in pairs]
    return damage_of(torch.stack(samples).numpy())


def _by_prompt(data: Calibration) -> Iterator[dict[str, Any]]:
    return (data.inputs(slice(n, n + 1)) for n in range(len(data.noisy)))


def latency_ratio(student: nn.Module, teacher: nn.Module, inputs: dict[str, Any], budget_s: float) -> Estimate:
    """One call of each, in pairs."""
    clock = clocks.HostClock()
    calls = {
        name: partial(clocks.timed, partial(unet, **inputs), clock)
        for name, unet in (("student", student), ("teacher", teacher))
    }
    with torch.inference_mode():
        for call in calls.values():
            repeats.warm_up(call, budget_s=budget_s / 10)
        pattern = ("student", "teacher", "teacher", "student")
        samples = repeats.interleave(calls, pattern, clock, min_rounds=100, budget_s=budget_s)
    return paired_ratio(samples["student"], samples["teacher"])


def _params(unet: nn.Module) -> int:
    return sum(parameter.numel() for parameter in unet.parameters())


def _macs(unet: nn.Module, inputs: dict[str, Any]) -> int:
    return flops.count(unet, (), inputs).total.macs


def row(network: Pruned) -> dict[str, str]:
    """A line of the printed table."""
    ratio, error = network.latency_ratio, network.damage
    return {
        "importance": network.importance,
        "channels": f"−{network.channels:.0%} {'of every group' if network.everywhere_alike else 'of all'}",
        "parameters": f"{network.params_ratio:.2f}",
        "MACs": f"{network.macs_ratio:.2f}",
        "latency": f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
        "damage": f"{error.value:.2g} [{error.low:.2g}, {error.high:.2g}]",
    }


if __name__ == "__main__":
    run(main)
