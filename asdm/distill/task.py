"""One forward of student and teacher, and what the student is to learn of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from asdm.distill.losses import PLACED, TERMS, LossInputs, Term, block_outputs
from asdm.unet import blocks
from asdm.unet.hooks import Call, Places, capture, captured_calls, first_tensor
from asdm.unet.surgery import Applied

Mode = Literal["end_to_end", "blockwise"]
MODES: tuple[Mode, ...] = ("end_to_end", "blockwise")
PERCEPTUAL, BLOCKS = "perceptual", "blocks"
NAMES = (*TERMS, PERCEPTUAL, BLOCKS)
LEGAL: dict[str, tuple[str, ...]] = {
    "end_to_end": (*TERMS, PERCEPTUAL),
    "blockwise": ("denoising", "output", PERCEPTUAL, BLOCKS),
}


@dataclass(frozen=True)
class Objective:
    """What is asked in a lesson: which terms, at which places, and how they are counted."""

    terms: tuple[str, ...]
    places: Mapping[str, Places]
    prediction_type: str
    mode: Mode = "end_to_end"
    normalise: bool = True
    min_snr: float | None = None
    perceptual: Term | None = None


class DistillationTask(nn.Module):
    """`lesson(noisy, timesteps, states, target, alpha)` gives each term by name, one value per picture (b,).

    The student is its only child: what wraps it (DDP, FSDP, autocast) sees one module with one forward, and the
    teacher is nobody's to shard or to synchronise.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, applied: Applied, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self._others = (teacher, applied, objective)  # a tuple hides a module from nn.Module
        if objective.mode == "blockwise":
            self._blocks = _Blockwise(student, teacher, applied, objective)

    @property
    def teacher(self) -> nn.Module:
        return self._others[0]

    @property
    def objective(self) -> Objective:
        return self._others[2]

    def forward(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        states: torch.Tensor,
        target: torch.Tensor,
        alpha: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        inputs = {"sample": noisy, "timestep": timesteps, "encoder_hidden_states": states, "return_dict": False}
        if self.objective.mode == "blockwise":
            return self._blocks.terms(inputs, target, alpha)
        places = {kind: self.objective.places[kind] for kind in self.objective.terms if kind in PLACED}
        ours, theirs = ([pair[i] for pairs in places.values() for pair in pairs] for i in (0, 1))
        with torch.no_grad(), capture(self.teacher, theirs) as teacher_features:
            teacher_prediction = self.teacher(**inputs)[0]
        with capture(self.student, ours) as features:
            prediction = self.student(**inputs)[0]
        seen = LossInputs(
            prediction=prediction,
            teacher_prediction=teacher_prediction,
            target=target,
            noisy=noisy,
            alpha=alpha,
            prediction_type=self.objective.prediction_type,
            min_snr=self.objective.min_snr,
            normalise=self.objective.normalise,
            features=features,
            teacher_features=teacher_features,
            places=places,
        )
        return {name: term_of(name, self.objective)(seen) for name in self.objective.terms}


def term_of(name: str, objective: Objective) -> Term:
    """The callable behind a term's name."""
    if name == PERCEPTUAL:
        assert objective.perceptual is not None, "whoever asks for the perceptual term gives its network"
        return objective.perceptual
    return TERMS[name]


# ---------------------------------------------------------------------------------------------- blockwise


class _Blockwise:
    """Each block that learns is given what the teacher's block was given, and is to give what that one gave.

    So no gradient crosses the frozen trunk, and the student's trunk is not even run. A skip is compared with the
    teacher's skip that its consumer was made for, and an up block is given those. Behind the last up block comes only
    the head, so where that block learns, prediction and target are compared as well.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, applied: Applied, objective: Objective) -> None:
        self.student, self.teacher, self.objective = student, teacher, objective
        self.blocks = {
            name: applied.name_map[name]
            for name, block in blocks.iter_blocks(student)
            if any(p.requires_grad for p in block.parameters())
        }
        self.skips = blocks.skips_in_teacher(student, teacher, applied.teacher_name)
        self.consumers = {name: _consumers(name, student, applied) for name in self.blocks}
        self.last = [name for name, _ in blocks.iter_blocks(student)][-1]

    def terms(self, inputs: dict[str, Any], target: torch.Tensor, alpha: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad(), captured_calls(self.teacher, self.blocks.values()) as calls:
            teacher_prediction = self.teacher(**inputs)[0]
        pairs, prediction = [], None
        for name, theirs in self.blocks.items():
            call = calls[theirs]
            given = self._run(name, call)
            pairs.append((first_tensor(given), first_tensor(call.output)))
            if isinstance(given, tuple):
                pairs += self._skips(name, theirs, given[1], call.output[1])
            if name == self.last:
                prediction = blocks.head(self.student, first_tensor(given))
        found = {BLOCKS: block_outputs(pairs, self.objective.normalise)} if BLOCKS in self.objective.terms else {}
        if prediction is None:
            return found
        seen = LossInputs(
            prediction=prediction,
            teacher_prediction=teacher_prediction,
            target=target,
            noisy=inputs["sample"],
            alpha=alpha,
            prediction_type=self.objective.prediction_type,
            min_snr=self.objective.min_snr,
            normalise=self.objective.normalise,
        )
        return found | {name: term_of(name, self.objective)(seen) for name in self.objective.terms if name != BLOCKS}

    def _run(self, name: str, call: Call) -> Any:
        """The student's block on the teacher's inputs; an up block gets the skips of the ResNets that are left."""
        kwargs = dict(call.kwargs)
        if kept := self.consumers[name]:
            skips = kwargs["res_hidden_states_tuple"]
            kwargs["res_hidden_states_tuple"] = tuple(skips[-1 - layer] for layer in reversed(kept))
        return self.student.get_submodule(name)(*call.args, **kwargs)

    def _skips(self, name: str, theirs: str, ours: Any, given: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        names, originals = (
            [skip for skip in blocks.skips(unet) if skip.startswith(f"{block}.")]
            for unet, block in ((self.student, name), (self.teacher, theirs))
        )
        place = {skip: i for i, skip in enumerate(originals)}
        wanted = [(i, place.get(self.skips.get(skip, ""))) for i, skip in enumerate(names)]
        return [(ours[i], given[at]) for i, at in wanted if at is not None and ours[i].shape == given[at].shape]


def _consumers(block: str, student: nn.Module, applied: Applied) -> list[int]:
    """The teacher's layer numbers of an up block's ResNets, in order; none for other blocks."""
    if not block.startswith("up_blocks."):
        return []
    names = [consumer for _, consumer in blocks.skip_pairs(student) if consumer.startswith(f"{block}.")]
    return [int(applied.teacher_name(name).rpartition(".")[2]) for name in names]


# ---------------------------------------------------------------------------------------------- memory


def saved_bytes(call: Callable[[], Any], module: nn.Module) -> int:
    """Bytes that the backward of `call` needs beyond `module`'s own tensors; on the meta device nothing is computed."""
    own = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call()
    total = sum(storage.nbytes() for storage in kept.values())
    del out
    return total
