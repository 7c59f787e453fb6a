"""One resumable loop for everything that the mini is made of.

Nothing is random but by (seed, step): the batch, the noise and the dropout of a step follow from its number alone. So
a checkpoint is weights, optimizer and a step number, and a run that was killed and taken up again ends with the same
bits as one that was not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from safetensors.torch import load_file, save
from torch import nn

from asdm.utils.io import make_folder, write_whole
from asdm.utils.progress import Tell

Terms = dict[str, torch.Tensor]
CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"
LOG_EVERY = 10


@dataclass(frozen=True)
class Stage:
    """What is trained, on what, and how; `loss(indices, generator)` gives named terms, "loss" being their sum."""

    name: str
    module: nn.Module
    examples: int
    loss: Callable[[torch.Tensor, torch.Generator], Terms]
    steps: int
    batch: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warm_up: int = 100
    ema_decay: float = 0.997
    muon: bool = False  # matrices and kernels by Muon at the same rate, all else by AdamW
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, constant, linear decay over the second half."""
        rising = (step + 1) / self.warm_up
        falling = (self.steps - step) / (self.steps / 2)
        return self.learning_rate * min(1.0, rising, falling)

    def batch_of(self, step: int) -> torch.Tensor:
        """Indices (batch,) of a step: a new order every epoch, the last incomplete batch left out."""
        epoch, position = divmod(step, self.examples // self.batch)
        order = torch.randperm(self.examples, generator=step_generator(self.seed, epoch, 1))
        return order[position * self.batch : (position + 1) * self.batch]


def step_generator(seed: int, number: int, stream: int = 0) -> torch.Generator:
    """The generator of one step (or epoch) of one stream; the weights that ship were trained with these seeds."""
    return torch.Generator().manual_seed((seed * 1_000_003 + number) * 4 + stream)


class Run:
    """A stage under way: its weights, their running average, and the optimizers' moments."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage, self.folder, self.step = stage, folder, 0
        self.names = [name for name, p in stage.module.named_parameters() if p.requires_grad]
        self.parameters = [p for p in stage.module.parameters() if p.requires_grad]
        self.ema = [p.detach().clone() for p in self.parameters]
        self.matrices = {i: _as_matrix(p) for i, p in enumerate(self.parameters) if stage.muon and _is_matrix(p)}
        self.optimizers = self._optimizers()
        if (folder / CHECKPOINT).exists():
            self._resume()

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        stage, rest = self.stage, [p for i, p in enumerate(self.parameters) if i not in self.matrices]
        made: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, stage.learning_rate, stage.betas, weight_decay=stage.weight_decay, foreach=True)
        ]
        if self.matrices:
            made.append(
                torch.optim.Muon(
                    list(self.matrices.values()),
                    stage.learning_rate,
                    weight_decay=stage.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        return made

    def advance(self) -> dict[str, float]:
        """One step; returns the loss terms. Raises ValueError where the loss is no number."""
        stage, step = self.stage, self.step
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = stage.rate(step)
        terms = stage.loss(stage.batch_of(step), step_generator(stage.seed, step))
        values = {name: float(term.detach()) for name, term in terms.items()}
        if values["loss"] != values["loss"]:
            raise ValueError(f"the loss of {stage.name} is not a number at step {step}; {self.folder} keeps the last.")
        stage.module.zero_grad(set_to_none=True)
        terms["loss"].backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for i, matrix in self.matrices.items():
            gradient = self.parameters[i].grad
            matrix.grad = None if gradient is None else gradient.reshape(matrix.shape)
        for optimizer in self.optimizers:
            optimizer.step()
        decay = min(stage.ema_decay, (1 + step) / (10 + step))  # a young average forgets its random beginning
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1 - decay)
        self.step += 1
        return values

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        tensors = {"step": torch.tensor(self.step), "steps": torch.tensor(self.stage.steps)}
        for i, (name, parameter, ema) in enumerate(zip(self.names, self.parameters, self.ema, strict=True)):
            tensors[f"weight/{name}"] = parameter.detach().contiguous()
            tensors[f"ema/{name}"] = ema.contiguous()
            for what, tensor in self._moments(i).items():
                tensors[f"{what}/{name}"] = tensor.contiguous()
        write_whole(self.folder / CHECKPOINT, save(tensors), force=True)

    def _moments(self, i: int) -> dict[str, torch.Tensor]:
        """What the optimizer of parameter i remembers of it."""
        if i in self.matrices:
            return self.optimizers[1].state[self.matrices[i]]
        return self.optimizers[0].state[self.parameters[i]]

    def _resume(self) -> None:
        stored = load_file(self.folder / CHECKPOINT)
        self.step = int(stored["step"])
        with torch.no_grad():
            for i, (name, parameter, ema) in enumerate(zip(self.names, self.parameters, self.ema, strict=True)):
                parameter.copy_(stored[f"weight/{name}"])
                ema.copy_(stored[f"ema/{name}"])
                suffix, moments = f"/{name}", self._moments(i)
                for key in stored:
                    what = key.removesuffix(suffix)
                    if key.endswith(suffix) and what not in ("weight", "ema") and "/" not in what:
                        moments[what] = _laid_out_as(parameter, stored[key])

    def use_average(self) -> nn.Module:
        """The module with the running average for its weights."""
        with torch.no_grad():
            for parameter, ema in zip(self.parameters, self.ema, strict=True):
                parameter.copy_(ema)
        return self.stage.module.eval()


def _laid_out_as(parameter: nn.Parameter, stored: torch.Tensor) -> torch.Tensor:
    """The stored moment with its parameter's strides, so that a resumed step takes the same path through memory."""
    if stored.shape != parameter.shape:
        return stored.clone()
    return torch.empty_like(parameter, dtype=stored.dtype, requires_grad=False).copy_(stored)


def _is_matrix(parameter: torch.Tensor) -> bool:
    """Kernels and projections; not biases, norms, nor tables of few columns."""
    return parameter.dim() > 1 and min(parameter.shape[0], parameter[0].numel()) > 4


def _as_matrix(parameter: nn.Parameter) -> nn.Parameter:
    """(rows, all else), in the parameter's own memory."""
    return nn.Parameter(parameter.detach().view(len(parameter), -1))


def train(stage: Stage, folder: Path, tell: Tell, checkpoint_s: float = 60.0, stop_at: int | None = None) -> nn.Module:
    """Train to the last step, from the folder's checkpoint where there is one; returns the averaged module."""
    make_folder(folder)
    run = Run(stage, folder)
    log = _log_until(folder / LOG, run.step)
    began, first, saved = time.monotonic(), run.step, time.monotonic()
    end = min(stage.steps, stop_at or stage.steps)
    stage.module.train()
    try:
        while run.step < end:
            terms = run.advance()
            now = time.monotonic()
            pace = (now - began) / (run.step - first)
            if (run.step - 1) % LOG_EVERY == 0:
                line = {"step": run.step - 1, "rate": stage.rate(run.step - 1)} | terms
                log.write(json.dumps(line | {"images_per_s": round(stage.batch / pace, 1)}) + "\n")
            tell(stage.name, run.step, pace * (end - run.step))
            if now - saved > checkpoint_s:
                run.save()
                log.flush()
                saved = now
        run.save()
    finally:
        log.close()
    return run.use_average()


def _log_until(path: Path, step: int) -> TextIO:
    """The log, open to go on after `step`: lines of steps that will be taken again are dropped."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < step]
    write_whole(path, "".join(f"{line}\n" for line in kept), force=True)
    return path.open("a")
