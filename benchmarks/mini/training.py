"""One resumable training loop for every part of the mini.

All randomness follows from the seed and the number of pictures seen: batch, noise and dropout depend on nothing else. A
checkpoint is therefore weights, their moving average, optimizer moments and that number, and a run that was killed and
resumed ends with the same bits as one that was not. As everything is counted in pictures, a run may continue with
another batch size or number of workers, or on a GPU.

Several workers share a batch, each in a thread of its own: two single-threaded workers train a small network on two
cores in half the time that one worker with two threads takes, whose threads wait for each other at every operation.

Order, checkpoints and log are the library's (`asdm.data.loader`, `asdm.utils.snapshots`, `asdm.distill.logger`). The
loop is its own, as `asdm distill` trains a student against a frozen teacher and its encoders, while a part of the mini
is trained from random weights with a loss of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from asdm.data.loader import Orders, seeded
from asdm.distill.logger import JsonlWriter
from asdm.utils import snapshots
from asdm.utils.progress import Tell

LossTerms = dict[str, torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Generator], LossTerms]  # (indices, generator) → terms; "loss" is the total
CHECKPOINTS = "checkpoints"
LOG = "log.jsonl"
LOG_EVERY = 10  # steps


@dataclass(frozen=True)
class TrainingTask:
    """What is trained, on what, and how; all lengths in pictures."""

    name: str
    module: nn.Module
    examples: int
    loss: Loss
    pictures: int
    batch: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warm_up: int = 6_400
    average_over: int = 20_000
    workers: int = 1  # threads that share a batch
    by_muon: Callable[[str, nn.Parameter], bool] | None = None  # which weights Muon trains; AdamW trains the others
    seed: int = 0
    last_loss: Loss | None = None  # takes the place of `loss` at the end: for its last `last_pictures`
    last_pictures: int = 0
    last_cost: float = 1.0  # of a picture then, in pictures of before

    def rate(self, pictures_seen: int) -> float:
        """Learning rate: linear warm-up, constant, linear decay over the second half."""
        rising = (pictures_seen + self.batch) / self.warm_up
        falling = (self.pictures - pictures_seen) / (self.pictures / 2)
        return self.learning_rate * min(1.0, rising, falling)

    def loss_at(self, pictures_seen: int) -> Loss:
        return self.last_loss if self.last_loss and pictures_seen >= self.pictures - self.last_pictures else self.loss

    def cost(self, pictures_seen: int) -> float:
        """What the pictures so far have cost, in pictures of the beginning; for the time left."""
        return pictures_seen + max(0, pictures_seen - (self.pictures - self.last_pictures)) * (self.last_cost - 1)


class Trainer:
    """A task in training: its weights, their moving average, and the optimizer's moments."""

    def __init__(self, task: TrainingTask, folder: Path) -> None:
        self.task, self.checkpoints = task, snapshots.prepare(folder / CHECKPOINTS)
        self.pictures_seen, self.step = 0, 0
        self.orders = Orders(task.examples, task.seed)
        self.parameters = {name: p for name, p in task.module.named_parameters() if p.requires_grad}
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimizers = list(_optimizers(task, self.parameters))
        self.workers = ThreadPoolExecutor(task.workers)
        if checkpoint := snapshots.newest(self.checkpoints):
            self._resume(checkpoint)

    def advance(self) -> dict[str, float]:
        """One step; returns the loss terms. Raises ValueError where the loss is not a number."""
        task, pictures_seen = self.task, self.pictures_seen
        for optimizer, _ in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = task.rate(pictures_seen)
        indices = torch.tensor([self.orders.at(pictures_seen + i) for i in range(task.batch)])
        parts = indices.tensor_split(task.workers)
        firsts = [pictures_seen + sum(map(len, parts[:i])) for i in range(len(parts))]
        results = list(self.workers.map(self._gradients, parts, firsts))
        values = {name: sum(terms[name] for terms, _ in results) for name in results[0][0]}
        if values["loss"] != values["loss"]:
            raise ValueError(
                f"the loss of {task.name} is not a number after {pictures_seen} pictures; the last checkpoint is in "
                f"{self.checkpoints}."
            )
        for parameter, *gradients in zip(self.parameters.values(), *(g for _, g in results), strict=True):
            parameter.grad = None if gradients[0] is None else sum(gradients[1:], gradients[0])
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        list(self.workers.map(self._step, *zip(*self.optimizers, strict=True)))
        # A short horizon at first, so that the random start is forgotten early.
        horizon = min(task.average_over, pictures_seen / 9 + 10 / 9 * task.batch)
        with torch.no_grad():
            new = [p.detach() for p in self.parameters.values()]
            torch._foreach_lerp_(list(self.ema.values()), new, min(1.0, task.batch / horizon))
        self.pictures_seen, self.step = pictures_seen + task.batch, self.step + 1
        return values

    def _gradients(self, indices: torch.Tensor, first: int) -> tuple[dict[str, float], tuple[torch.Tensor | None, ...]]:
        """Loss terms and gradients of some pictures, the first of which is the `first`-th seen: their share."""
        share = len(indices) / self.task.batch
        terms = self.task.loss_at(self.pictures_seen)(indices, seeded(self.task.seed, first, 1))
        gradients = torch.autograd.grad(terms["loss"] * share, tuple(self.parameters.values()), allow_unused=True)
        return {name: float(term.detach()) * share for name, term in terms.items()}, gradients

    def _step(self, optimizer: torch.optim.Optimizer, trained: dict[str, nn.Parameter]) -> None:
        for name, weight in trained.items():
            if weight is not (parameter := self.parameters[name]):
                assert parameter.grad is not None, "matrices and kernels always have a gradient"
                weight.grad = _as_matrix(_laid_out_as(parameter, parameter.grad))
        optimizer.step()

    def save(self) -> None:
        """Write the checkpoint atomically, and drop the one before it."""
        moments = {
            f"{name}/{moment}": tensor
            for optimizer, trained in self.optimizers
            for name, weight in trained.items()
            for moment, tensor in optimizer.state[weight].items()
        }
        weights: dict[str, torch.Tensor] = {**self.parameters}
        tensors = {"weights": weights, "average": self.ema, "optimizer": moments}
        snapshots.write(self.checkpoints, self.step, tensors, {"seen": self.pictures_seen}, keep=1)

    def _resume(self, checkpoint: snapshots.Checkpoint) -> None:
        self.step, self.pictures_seen = checkpoint.step, checkpoint.state["seen"]
        weights, average = checkpoint.tensors("weights"), checkpoint.tensors("average")
        states = {name: (optimizer.state, p) for optimizer, trained in self.optimizers for name, p in trained.items()}
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
                self.ema[name].copy_(average[name])
            for key, tensor in checkpoint.tensors("optimizer").items():
                name, _, moment = key.rpartition("/")
                state, weight = states[name]
                state[weight][moment] = _laid_out_as(weight, tensor)

    def use_average(self) -> nn.Module:
        """The module with the moving average as its weights."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.ema[name])
        return self.task.module.eval()


def _optimizers(
    task: TrainingTask, parameters: dict[str, nn.Parameter]
) -> Iterator[tuple[torch.optim.Optimizer, dict[str, nn.Parameter]]]:
    """Each optimizer with what it trains, by name: Muon matrices in the memory of the weights, AdamW the weights."""
    by_muon = {n: p for n, p in parameters.items() if task.by_muon and task.by_muon(n, p)}
    others = {n: p for n, p in parameters.items() if n not in by_muon}
    if by_muon:
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(
                f"training the mini's UNet needs Muon, which torch {torch.__version__} lacks; install 2.9."
            )
        matrices = {name: nn.Parameter(_as_matrix(parameter.detach())) for name, parameter in by_muon.items()}
        by_work = sorted(matrices, key=lambda name: matrices[name].numel() * min(matrices[name].shape))
        for worker in range(task.workers):  # each weight is updated on its own, so that they can be shared out
            share = {name: matrices[name] for name in by_work[worker :: task.workers]}
            muon = torch.optim.Muon(
                share.values(), task.learning_rate, task.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            yield muon, share
    adamw = torch.optim.AdamW(
        others.values(), task.learning_rate, task.betas, weight_decay=task.weight_decay, fused=True
    )
    yield adamw, others


def _as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """Its kernels as rows (out, in·h·w), in the order of its memory, which it shares."""
    last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return (weight.permute(0, 2, 3, 1) if last else weight).view(len(weight), -1)


def _laid_out_as(parameter: nn.Parameter, stored: torch.Tensor) -> torch.Tensor:
    """The stored moment with its parameter's strides and device, so that a resumed step gives the same bits."""
    if stored.shape != parameter.shape:
        return stored.to(parameter.device)
    return torch.empty_like(parameter, dtype=stored.dtype, requires_grad=False).copy_(stored)


def train(
    task: TrainingTask, folder: Path, tell: Tell, checkpoint_s: float = 180.0, stop_at: int | None = None
) -> nn.Module:
    """Train to the last picture, from the folder's checkpoint where there is one; returns the averaged module."""
    trainer = Trainer(task, folder)
    log = JsonlWriter(folder / LOG, trainer.step - 1)  # lines count steps from 0
    began, first, saved = time.monotonic(), trainer.pictures_seen, time.monotonic()
    end = min(task.pictures, stop_at or task.pictures)
    task.module.train()
    try:
        while trainer.pictures_seen < end:
            rate = task.rate(trainer.pictures_seen)
            terms = trainer.advance()
            now = time.monotonic()
            # Seconds for a picture of the start.
            spent = (now - began) / (task.cost(trainer.pictures_seen) - task.cost(first))
            if (trainer.step - 1) % LOG_EVERY == 0:
                line = {"step": trainer.step - 1, "pictures": trainer.pictures_seen, "rate": rate} | terms
                log.write(line | {"images_per_s": round((trainer.pictures_seen - first) / (now - began), 1)})
            tell(task.name, trainer.pictures_seen, spent * max(0.0, task.cost(end) - task.cost(trainer.pictures_seen)))
            if now - saved > checkpoint_s:
                trainer.save()
                saved = now
        if trainer.pictures_seen > first:
            trainer.save()
    finally:
        log.close()
    return trainer.use_average()
