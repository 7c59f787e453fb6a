"""Replaced units fitted on what their originals took and gave: by least squares, layer by layer, in closed form.

A layer of the new unit changes its weights by Δ so that what its module gives comes nearest to what the original's
gave on the same inputs: min ‖R − XΔ‖² + λ‖Δ‖², where R is what is missing so far and X the layer's inputs. The ridge
draws towards the weights as they are; λ is chosen on data that are left out, where no change may be the best.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from asdm.unet.hooks import Call, captured_calls, first_tensor
from asdm.unet.replacements import Power, Refit
from asdm.unet.replacements._layers import Constant

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # times the mean of the inputs' squares


def own_memory(module: nn.Module) -> nn.Module:
    """A copy with parameters of its own, so that it can be trained."""
    return copy.deepcopy(module)


@torch.no_grad()
def channel_power(unit: nn.Module, calls: Iterable[Call]) -> Power:
    """Mean square of every input channel of each linear layer and convolution in a unit over its calls."""
    layers = {name: module for name, module in unit.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    for call in calls:
        with captured_calls(unit, layers) as inside:
            unit(*call.args, **call.kwargs)
        for name, one in inside.items():
            x = one.args[0].float()
            squares = x.transpose(1, -1).flatten(0, -2) if isinstance(layers[name], nn.Conv2d) else x.flatten(0, -2)
            sums[name] = sums.get(name, torch.zeros(())) + squares.square().sum(0)
            counts[name] = counts.get(name, 0) + len(squares)
    return {name: total / counts[name] for name, total in sums.items()}


@torch.no_grad()
def error(new: nn.Module, calls: Sequence[Call]) -> float:
    """Mean square of what a new unit gives less what the original gave, relative to the variance of the latter."""
    missing = spread = 0.0
    for call in calls:
        expected = first_tensor(call.output).float()
        missing += float((first_tensor(new(*call.args, **call.kwargs)).float() - expected).square().mean())
        spread += float(expected.var())
    return missing / max(spread, 1e-30)


@torch.no_grad()
def refit(new: nn.Module, unit: nn.Module, steps: Iterable[Refit], fit: Sequence[Call], judge: Sequence[Call]) -> None:
    """Change the layers of `new` in turn, in place; `fit` and `judge` are calls of the original."""
    for step in steps:
        layer = new.get_submodule(step.layer)
        sums = [_sums(new, unit, step, layer, calls) for calls in (fit, judge)]
        if delta := _solution(*sums):
            _add(layer, delta[0])


def _sums(
    new: nn.Module, unit: nn.Module, step: Refit, layer: nn.Module, calls: Sequence[Call]
) -> tuple[torch.Tensor, torch.Tensor]:
    """XᵀX and XᵀR over calls, each divided by the number of calls."""
    gram = cross = torch.zeros(())
    for call in calls:
        with captured_calls(unit, [step.module]) as theirs:
            unit(*call.args, **call.kwargs)
        with captured_calls(new, {step.module, step.layer}) as ours:
            new(*call.args, **call.kwargs)
        missing = first_tensor(theirs[step.module].output) - first_tensor(ours[step.module].output)
        x, r = _rows(layer, ours[step.layer].args[0], missing)
        gram, cross = gram + x.T @ x, cross + x.T @ r
    return gram.cpu().double() / len(calls), cross.cpu().double() / len(calls)  # not every GPU has doubles


def _rows(layer: nn.Module, x: torch.Tensor, missing: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (n, in + 1 with a bias) and what is missing (n, out), a row for each place of the layer's output."""
    if isinstance(layer, nn.Conv2d):
        assert layer.groups == 1, "only a convolution across channels is refit"
        padding: Any = layer.padding
        columns = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride).transpose(1, 2).flatten(0, 1)
        rows = missing.flatten(2).transpose(1, 2).flatten(0, 1)
    else:
        if missing.dim() == 4:  # a vector for each image, added to its map
            missing = missing.mean((2, 3))
        rows = missing.flatten(0, -2)
        columns = x.new_zeros(len(rows), 0) if isinstance(layer, Constant) else x.flatten(0, -2)
    if getattr(layer, "bias", None) is not None:
        columns = torch.cat([columns, columns.new_ones(len(columns), 1)], dim=1)
    return columns.float(), rows.float()


def _solution(
    fit: tuple[torch.Tensor, torch.Tensor], judge: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor] | None:
    """The change by the ridge that lowers what is missing in `judge` most, from all data; None if none lowers it."""
    best, ridge = 0.0, None
    for candidate in RIDGES:
        delta = _solve(*fit, candidate)
        gain = float((delta * (judge[0] @ delta)).sum() - 2 * (delta * judge[1]).sum())
        if gain < best:
            best, ridge = gain, candidate
    if ridge is None:
        return None
    gram, cross = (0.75 * a + 0.25 * b for a, b in zip(fit, judge, strict=True))  # every fourth batch judges
    return (_solve(gram, cross, ridge),)


def _solve(gram: torch.Tensor, cross: torch.Tensor, ridge: float) -> torch.Tensor:
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + (ridge * gram.diagonal().mean() + 1e-12) * identity, cross)


def _add(layer: Any, delta: torch.Tensor) -> None:
    if getattr(layer, "bias", None) is not None:
        layer.bias += delta[-1].to(layer.bias)
        delta = delta[:-1]
    if not isinstance(layer, Constant):
        layer.weight += delta.T.reshape(layer.weight.shape).to(layer.weight)
