"""What goes wrong, on any process: losses that are nonsense, and being asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from asdm.distill import losses

SPIKE_GRACE_STEPS = 50  # before a stage's losses are known well enough to call one of them a spike


class Diverged(ValueError):
    """A loss or a gradient that is no number, or a loss that leapt: training stopped before it reached the weights."""


def check_losses(
    values: Mapping[str, float],
    typical: Mapping[str, float],
    spike: float,
    step: int,
    offset: int,
    stage: str,
    saved: int,
) -> None:
    """Raises Diverged naming the first term that is no number, or `spike` times what it is used to be."""
    for name, value in values.items():
        if not abs(value) < float("inf"):
            raise Diverged(divergence_message(name, f"is {value}", step + offset, stage, saved))
        if spike and step >= SPIKE_GRACE_STEPS and value > spike * max(typical[name], losses.TINY):
            what = f"leapt to {value:.4g} (it was about {typical[name]:.4g}; --spike {spike:g})"
            raise Diverged(divergence_message(name, what, step + offset, stage, saved))


def divergence_message(what: str, how: str, step: int, stage: str, saved: int) -> str:
    """The sentence that says what stopped a run, where, and how to go on."""
    kept = f"the checkpoint of its step {saved} is kept" if saved else "there is no checkpoint before it"
    return (
        f"{what} {how} at step {step + 1} (stage {stage}), so training stopped; {kept}. Go on from it with the same "
        "command, --amend and, say, a lower --learning-rate."
    )


def average_over_processes(
    accelerator: Any, terms: Mapping[str, torch.Tensor], flags: Sequence[bool]
) -> tuple[dict[str, float], list[bool]]:
    """Every term's mean over all processes, and whether any of them raised each flag."""
    row = torch.stack([*(t.detach().float() for t in terms.values())])
    row = torch.cat([row, torch.tensor([float(f) for f in flags], device=row.device)])
    row = accelerator.reduce(row, reduction="mean").tolist()
    return dict(zip(terms, row, strict=False)), [value > 0 for value in row[len(terms) :]]


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask for a stop after the step; a second Ctrl-C stops at once."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, which gets no signals
        before = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
