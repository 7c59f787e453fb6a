"""One resumable training loop for every part of the mini.

All randomness follows from (seed, step): batch, noise and dropout depend on a step's number alone. A checkpoint is
therefore weights, their moving average, optimizer moments and a step number, and a run that was interrupted and resumed
ends with the same bits as one that was not.

Checkpoints and the log are the library's (`asdm.utils.snapshots`, `asdm.distill.logger`). The loop is its own, as
`asdm distill` trains a student against a frozen teacher and its encoders, while a part of the mini is trained from
random weights with a loss of its own. Its batch order, learning rate schedule, betas and moving average differ
from the library's as well; the weights that ship were trained with these, and the library's would give other bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from asdm.distill.logger import JsonlWriter
from asdm.utils import snapshots
from asdm.utils.progress import Tell

LossTerms = dict[str, torch.Tensor]
CHECKPOINTS = "checkpoints"
LOG = "log.jsonl"
LOG_EVERY = 10


@dataclass(frozen=True)
class TrainingTask:
    """What is trained, on what, and how; `loss(indices, generator)` gives named terms, of which "loss" is the total."""

    name: str
    module: nn.Module
    examples: int
    loss: Callable[[torch.Tensor, torch.Generator], LossTerms]
    steps: int
    batch: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warm_up: int = 100
    ema_decay: float = 0.997
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, constant, linear decay over the second half."""
        rising = (step + 1) / self.warm_up
        falling = (self.steps - step) / (self.steps / 2)
        return self.learning_rate * min(1.0, rising, falling)

    def batch_of(self, step: int) -> torch.Tensor:
        """Indices (batch,) of a step: a new order every epoch, without the last incomplete batch."""
        epoch, position = divmod(step, self.examples // self.batch)
        order = torch.randperm(self.examples, generator=step_generator(self.seed, epoch, 1))
        return order[position * self.batch : (position + 1) * self.batch]


def step_generator(seed: int, number: int, stream: int = 0) -> torch.Generator:
    """The generator of one step (or epoch) of one stream; the weights that ship were trained with these seeds."""
    return torch.Generator().manual_seed((seed * 1_000_003 + number) * 4 + stream)


class Trainer:
    """A task in training: its weights, their moving average, and the optimizer's moments."""

    def __init__(self, task: TrainingTask, folder: Path) -> None:
        self.task, self.checkpoints, self.step = task, snapshots.prepare(folder / CHECKPOINTS), 0
        self.parameters = {name: p for name, p in task.module.named_parameters() if p.requires_grad}
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), task.learning_rate, task.betas, weight_decay=task.weight_decay, foreach=True
        )
        if checkpoint := snapshots.newest(self.checkpoints):
            self._resume(checkpoint)

    def advance(self) -> dict[str, float]:
        """One step; returns the loss terms. Raises ValueError where the loss is not a number."""
        task, step = self.task, self.step
        for group in self.optimizer.param_groups:
            group["lr"] = task.rate(step)
        terms = task.loss(task.batch_of(step), step_generator(task.seed, step))
        values = {name: float(term.detach()) for name, term in terms.items()}
        if values["loss"] != values["loss"]:
            raise ValueError(
                f"the loss of {task.name} is not a number at step {step}; the last checkpoint is in {self.checkpoints}."
            )
        task.module.zero_grad(set_to_none=True)
        terms["loss"].backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        decay = min(task.ema_decay, (1 + step) / (10 + step))  # so that the random start is forgotten early
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), [p.detach() for p in self.parameters.values()], 1 - decay)
        self.step += 1
        return values

    def save(self) -> None:
        """Write the checkpoint atomically, and drop the one before it."""
        state = self.optimizer.state
        moments = {f"{n}/{moment}": t for n, p in self.parameters.items() for moment, t in state[p].items()}
        weights: dict[str, torch.Tensor] = {**self.parameters}
        tensors = {"weights": weights, "average": self.ema, "optimizer": moments}
        snapshots.write(self.checkpoints, self.step, tensors, {}, keep=1)

    def _resume(self, checkpoint: snapshots.Checkpoint) -> None:
        self.step = checkpoint.step
        weights, average = checkpoint.tensors("weights"), checkpoint.tensors("average")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
                self.ema[name].copy_(average[name])
            for key, tensor in checkpoint.tensors("optimizer").items():
                name, _, moment = key.rpartition("/")
                parameter = self.parameters[name]
                self.optimizer.state[parameter][moment] = _laid_out_as(parameter, tensor)

    def use_average(self) -> nn.Module:
        """The module with the moving average as its weights."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.ema[name])
        return self.task.module.eval()


def _laid_out_as(parameter: nn.Parameter, stored: torch.Tensor) -> torch.Tensor:
    """The stored moment with its parameter's strides, so that a resumed step gives the same bits."""
    if stored.shape != parameter.shape:
        return stored.clone()
    return torch.empty_like(parameter, dtype=stored.dtype, requires_grad=False).copy_(stored)


def train(
    task: TrainingTask, folder: Path, tell: Tell, checkpoint_s: float = 60.0, stop_at: int | None = None
) -> nn.Module:
    """Train to the last step, from the folder's checkpoint where there is one; returns the averaged module."""
    trainer = Trainer(task, folder)
    log = JsonlWriter(folder / LOG, trainer.step - 1)  # lines count steps from 0
    began, first, saved = time.monotonic(), trainer.step, time.monotonic()
    end = min(task.steps, stop_at or task.steps)
    task.module.train()
    try:
        while trainer.step < end:
            terms = trainer.advance()
            now = time.monotonic()
            pace = (now - began) / (trainer.step - first)
            if (trainer.step - 1) % LOG_EVERY == 0:
                line = {"step": trainer.step - 1, "rate": task.rate(trainer.step - 1)} | terms
                log.write(line | {"images_per_s": round(task.batch / pace, 1)})
            tell(task.name, trainer.step, pace * (end - trainer.step))
            if now - saved > checkpoint_s:
                trainer.save()
                saved = now
        trainer.save()
    finally:
        log.close()
    return trainer.use_average()
