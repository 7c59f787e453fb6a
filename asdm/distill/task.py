"""One forward of student and teacher, and the loss terms between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from asdm.distill import losses
from asdm.distill.losses import LossInputs, Mode
from asdm.unet import blocks
from asdm.unet.hooks import Call, Places, capture, captured_calls, first_tensor
from asdm.unet.surgery import Applied

Pairs = tuple[tuple[torch.Tensor, torch.Tensor], ...]  # (student's map, teacher's map)


@dataclass(frozen=True)
class Objective:
    """What a student learns: which loss terms, at which places, and how they are computed."""

    terms: tuple[str, ...]
    places: Mapping[str, Places]  # of the terms that compare feature maps
    prediction_type: str
    mode: Mode = "end_to_end"
    normalise: bool = True
    min_snr: float | None = None
    networks: Mapping[str, Any] = field(default_factory=dict)  # of the terms that need one


class DistillationTask(nn.Module):
    """`task(noisy, timesteps, states, target, alpha)` gives each loss term by name, one value per image (b,).

    SDXL's takes the pooled text (b, c) and the time ids (b, 6) as well.

    The student is its only child module, so what wraps the task (DDP, FSDP, autocast) sees one module with one
    forward. The teacher stays outside the module tree, so DDP and FSDP do not touch it.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, applied: Applied, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher,)  # a tuple hides a module from nn.Module
        self.objective = objective
        self._terms = {name: losses.load(name) for name in objective.terms}
        self._blockwise = BlockwiseForward(student, teacher, applied) if objective.mode == "blockwise" else None

    @property
    def teacher(self) -> nn.Module:
        return self._teacher[0]

    def forward(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        states: torch.Tensor,
        target: torch.Tensor,
        alpha: torch.Tensor,
        pooled: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        unet_inputs = {"sample": noisy, "timestep": timesteps, "encoder_hidden_states": states, "return_dict": False}
        if pooled is not None:
            unet_inputs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": time_ids}
        if self._blockwise:
            prediction, teacher_prediction, pairs = self._blockwise(unet_inputs)
            maps = {name: pairs for name, term in self._terms.items() if term.COMPARES == "block_outputs"}
        else:
            prediction, teacher_prediction, maps = self._end_to_end(unet_inputs)
        how = {name: getattr(self.objective, name) for name in ("prediction_type", "min_snr", "normalise")}
        inputs = LossInputs(prediction, teacher_prediction, target, noisy, alpha, **how)
        networks = self.objective.networks
        # Block outputs first: the trainer sums the losses in this order.
        order = sorted(self._terms, key=lambda name: self._terms[name].COMPARES != "block_outputs")
        return {
            name: self._terms[name].loss(replace(inputs, maps=maps.get(name, ()), network=networks.get(name)))
            for name in order
        }

    def _end_to_end(self, unet_inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, dict[str, Pairs]]:
        """Both predictions, and each term's maps at its places."""
        places = {name: self.objective.places[name] for name in self._terms if name in self.objective.places}
        student_names, teacher_names = ([pair[i] for pairs in places.values() for pair in pairs] for i in (0, 1))
        with torch.no_grad(), capture(self.teacher, teacher_names) as teacher_maps:
            teacher_prediction = self.teacher(**unet_inputs)[0]
        with capture(self.student, student_names) as student_maps:
            prediction = self.student(**unet_inputs)[0]
        maps = {
            term: tuple((student_maps[student], teacher_maps[teacher]) for student, teacher in pairs)
            for term, pairs in places.items()
        }
        return prediction, teacher_prediction, maps


# ---------------------------------------------------------------------------------------------- blockwise


class BlockwiseForward:
    """Runs each trained block on the inputs of the teacher's block, and pairs their outputs.

    No gradient crosses the frozen trunk, and the student's trunk does not run. A skip is paired with the teacher's
    skip that its consumer was trained on, and an up block receives those skips. After the last up block only the head
    remains, so where that block is trained, there is a prediction as well.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, applied: Applied) -> None:
        self.student, self.teacher = student, teacher
        self.blocks = {
            name: applied.name_map[name]
            for name, block in blocks.iter_blocks(student)
            if any(p.requires_grad for p in block.parameters())
        }
        self.skips = blocks.skips_in_teacher(student, teacher, applied.teacher_name)
        self.consumers = {name: _consumers(name, student, applied) for name in self.blocks}
        self.last = [name for name, _ in blocks.iter_blocks(student)][-1]

    def __call__(self, unet_inputs: dict[str, Any]) -> tuple[Any, torch.Tensor, Pairs]:
        """The student's prediction (None where the last block is frozen), the teacher's, and the pairs of outputs."""
        with torch.no_grad(), captured_calls(self.teacher, self.blocks.values()) as calls:
            teacher_prediction = self.teacher(**unet_inputs)[0]
        pairs, prediction = [], None
        for name, teacher_name in self.blocks.items():
            call = calls[teacher_name]
            output = self._run_block(name, call)
            pairs.append((first_tensor(output), first_tensor(call.output)))
            if isinstance(output, tuple):
                pairs += self._skip_pairs(name, teacher_name, output[1], call.output[1])
            if name == self.last:
                prediction = blocks.head(self.student, first_tensor(output))
        return prediction, teacher_prediction, tuple(pairs)

    def _run_block(self, name: str, call: Call) -> Any:
        """The student's block on the teacher's inputs; an up block gets the skips of the ResNets it still has."""
        kwargs = dict(call.kwargs)
        if layers := self.consumers[name]:
            skips = kwargs["res_hidden_states_tuple"]
            kwargs["res_hidden_states_tuple"] = tuple(skips[-1 - layer] for layer in reversed(layers))
        return self.student.get_submodule(name)(*call.args, **kwargs)

    def _skip_pairs(self, name: str, teacher_name: str, skips: Any, teacher_skips: Any) -> list[Any]:
        """The block's skips, each with the teacher's skip for the same consumer where their shapes agree."""
        names, teacher_names = (
            [skip for skip in blocks.skips(unet) if skip.startswith(f"{block}.")]
            for unet, block in ((self.student, name), (self.teacher, teacher_name))
        )
        index = {skip: i for i, skip in enumerate(teacher_names)}
        matches = [(i, index.get(self.skips.get(skip, ""))) for i, skip in enumerate(names)]
        return [
            (skips[i], teacher_skips[j])
            for i, j in matches
            if j is not None and skips[i].shape == teacher_skips[j].shape
        ]


def _consumers(block: str, student: nn.Module, applied: Applied) -> list[int]:
    """The teacher's layer numbers of an up block's ResNets, in order; none for other blocks."""
    if not block.startswith("up_blocks."):
        return []
    names = [consumer for _, consumer in blocks.skip_pairs(student) if consumer.startswith(f"{block}.")]
    return [int(applied.teacher_name(name).rpartition(".")[2]) for name in names]
