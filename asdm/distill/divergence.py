"""What ends a run early, on any process: losses that diverge, and signals."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from asdm.distill import losses

T = TypeVar("T")
SMALLEST_SCALE = 1.0  # of fp16's loss: below it, gradients overflow that nothing has enlarged
SPIKE_GRACE_STEPS = 50  # of a stage, before its running means are good enough to recognise a spike


class Diverged(ValueError):
    """A loss or gradient is not finite, or a loss spiked; training stopped before it reached the weights."""

    def __init__(self, name: str, problem: str, step: int, stage: str, saved: int) -> None:
        checkpoint = f"its checkpoint of step {saved} is kept" if saved else "there is no earlier checkpoint"
        super().__init__(
            f"{name} {problem} at step {step + 1} (stage {stage}), so training stopped; {checkpoint}. Continue with "
            "the same command, --amend and, for example, a lower --learning-rate."
        )


class UnreadableData(ValueError):
    """The data of one of several processes cannot be read; raised on all of them."""


def next_of_all(next_batch: Callable[[], T], accelerator: Any) -> T:
    """This process's next batch; of several processes, what the data of any of them raise ends all at the same step."""
    if accelerator.num_processes == 1:
        return next_batch()
    batch: T | None = None
    error: Exception | None = None
    try:
        batch = next_batch()
    except Exception as caught:
        error = caught
    failed = torch.tensor(float(error is not None), device=accelerator.device)
    if accelerator.reduce(failed, reduction="sum").item():
        raise UnreadableData(str(error) if error else "the data of another process cannot be read.") from error
    assert batch is not None
    return batch


def check_losses(
    values: Mapping[str, float],
    means: Mapping[str, float],
    spike: float,
    step: int,
    offset: int,
    stage: str,
    saved: int,
) -> None:
    """Raise Diverged for the first term that is not finite or exceeds `spike` times its running mean."""
    for name, value in values.items():
        if not abs(value) < float("inf"):
            raise Diverged(name, f"is {value}", step + offset, stage, saved)
        known = name in means  # a term that --amend added has none yet
        if spike and known and step >= SPIKE_GRACE_STEPS and value > spike * max(means[name], losses.TINY):
            problem = f"jumped to {value:.4g} (its running mean is {means[name]:.4g}; --spike {spike:g})"
            raise Diverged(name, problem, step + offset, stage, saved)


def check_scale(scale: float, step: int, stage: str, saved: int) -> None:
    """Raise Diverged where fp16's loss scale has fallen so far that every further step would be skipped as well."""
    if scale < SMALLEST_SCALE:
        problem = f"overflows fp16 however small the loss is scaled (by {scale:g} now)"
        raise Diverged("the gradient", problem, step, stage, saved)


def average_over_processes(
    accelerator: Any, terms: Mapping[str, torch.Tensor], flags: Sequence[bool]
) -> tuple[dict[str, float], list[bool]]:
    """Each term's mean over all processes, and whether any process raised each flag."""
    row = torch.stack([*(t.detach().float() for t in terms.values())])
    row = torch.cat([row, torch.tensor([float(f) for f in flags], device=row.device)])
    row = accelerator.reduce(row, reduction="mean").tolist()
    return dict(zip(terms, row, strict=False)), [value > 0 for value in row[len(terms) :]]


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM request a stop after the current step; a second Ctrl-C stops at once."""
    requested = False

    def request(number: int, frame: Any) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    try:
        handlers = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread may set signal handlers
        handlers = {}
    try:
        yield lambda: requested
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
