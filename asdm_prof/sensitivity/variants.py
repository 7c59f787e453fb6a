"""Students that share a teacher's tensors, run so that no common prefix of their forwards is computed twice.

A forward is a sequence of parts, and a part's output depends on the parts before it and on which of their outputs it
takes as its skip. Students are therefore sorted by their sequences, and each reuses the outputs of the parts that it
shares with its predecessor; in sorted order, no other student shares more. The real forward still runs, with the shared
parts returning stored outputs, so the numbers equal those of the plain loop to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from asdm.measure.device import meta_device
from asdm.models import example_inputs, loading
from asdm.models.families import Family
from asdm.plan.edits import ReplaceUnit
from asdm.plan.legality import ResolvedPlan, legal_edits
from asdm.unet import blocks as units, flops, surgery
from asdm.unet.replacements import names_of, shared_copy
from asdm.utils.sizes import Size

MEASURED = ("gri_attention", "kv_downsample")


def measurable_edits(unet: nn.Module, names: Sequence[str] | None = None) -> list[ResolvedPlan]:
    """Every edit of a teacher that is legal by itself, with the replacements `names` in the units where they apply.

    None: those of `MEASURED`; `all`: every one with all its settings, but experts, which start as their unit (§2.3).
    Raises ValueError for an unknown replacement.
    """
    teacher: Any = unet
    with meta_device():
        shapes = type(teacher).from_config(teacher.config)
    return legal_edits(units.topology(unet), surgery.applicable(shapes, measured_names(names)))


def measured_names(names: Sequence[str] | None) -> Sequence[str]:
    """The replacements to measure, of what a user named."""
    if names is None:
        return MEASURED
    return [name for name in names_of(",".join(names)) if name != "cond_conv" or "cond_conv" in names]


@dataclass
class Variant:
    """A student that shares the teacher's tensors, and the parts of its forward in order.

    `steps` are (name, module), where the name says what the part is and which skip it takes: two students whose first k
    names agree compute the same up to there.
    """

    index: int  # -1: the teacher
    unet: nn.Module
    steps: list[tuple[str, nn.Module]]
    shared: int = 0  # how many steps it has in common with the variant before it

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.steps)


def make_variants(
    teacher: nn.Module, plans: Sequence[ResolvedPlan], make: surgery.MakeUnit = surgery.replacement_for
) -> list[Variant]:
    """Teacher and students, sorted so that neighbours share most; the teacher is the first.

    All units are the teacher's own; a replaced one is made once, by `make`, and its weights are those of all students
    that have it.
    """
    made: dict[str, nn.Module] = {}

    def make_once(unet: nn.Module, edit: ReplaceUnit) -> nn.Module:
        key = str(edit)
        if key not in made:
            made[key] = make(teacher, edit)
        return shared_copy(made[key])

    ordered = [_variant(teacher, surgery.resolved_on(teacher, ()), -1, make_once)]
    ordered += [_variant(teacher, plan, index, make_once) for index, plan in enumerate(plans)]
    order: dict[str, int] = {}
    for variant in ordered:
        for name in variant.names:
            order.setdefault(name, len(order))
    ordered.sort(key=lambda variant: (variant.index >= 0, [order[name] for name in variant.names]))
    return sharing(ordered)


def sharing(ordered: Sequence[Variant]) -> list[Variant]:
    """Sorted variants, or some of them, with the steps that each has in common with the one before it."""
    for before, after in pairwise(ordered):
        after.shared = _in_common(before.names, after.names)
    return list(ordered)


def _variant(teacher: nn.Module, plan: ResolvedPlan, index: int, make: surgery.MakeUnit) -> Variant:
    unet = shared_copy(teacher, whole=[module for unit in units.iter_units(teacher) for module in unit.modules])
    applied = surgery.apply_plan(unet, plan, make)
    options = {e.unit: json.dumps(e.options, sort_keys=True, separators=(",", ":")) for e in plan.replacements}
    parts, steps = list(units.iter_parts(unet)), []
    taken = _skips_taken(unet, parts)
    for part in parts:
        fqn = applied.name_map[part.fqn]
        name = f"{fqn} {applied.replaced.get(fqn, '')} {options.get(fqn, '')} {taken.get(part.fqn, '')}"
        steps += [(f"{name} {i}", module) for i, module in enumerate(part.modules)]
    return Variant(index, unet, steps)


def _skips_taken(unet: nn.Module, parts: Sequence[units.Part]) -> dict[str, str]:
    """ResNet that takes a skip → how many steps precede the skip's producer.

    It is part of the step's name: without a layer, and with a layer that does nothing, a student's steps have the same
    names, but every later skip differs.
    """
    ends, done = {}, 0
    for part in parts:
        done += len(part.modules)
        ends[part.fqn if part.layer is None else f"{part.block}.layer.{part.layer}"] = done
    made_at, last = {}, 0
    for producer in units.skips(unet):
        made_at[producer] = last = ends.get(producer, last)
    return {consumer: f"@{made_at[producer]}" for producer, consumer in units.skip_pairs(unet)}


def _in_common(a: Sequence[str], b: Sequence[str]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def outputs(
    ordered: Sequence[Variant], inputs: dict[str, Any], reuse: bool = True
) -> Iterator[tuple[Variant, torch.Tensor]]:
    """The output of every variant for one batch; at most one forward's activations are held."""
    tape: list[Any] = []
    for n, variant in enumerate(ordered):
        shared = variant.shared if reuse else 0
        keep = ordered[n + 1].shared if reuse and n + 1 < len(ordered) else 0
        with _answering(variant, tape[:shared]), _recorded(variant, shared, keep, tape):
            output = variant.unet(**inputs)[0]
        yield variant, output  # with all modules as they were, since variants share them with the teacher


@contextmanager
def _answering(variant: Variant, answers: Sequence[Any]) -> Iterator[None]:
    """The first parts return stored outputs for the length of a `with`."""
    modules = [module for _, module in variant.steps[: len(answers)]]
    try:
        for module, answer in zip(modules, answers, strict=True):
            module.forward = lambda *_, answer=answer, **__: answer
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


@contextmanager
def _recorded(variant: Variant, shared: int, keep: int, tape: list[Any]) -> Iterator[None]:
    """Leave the outputs of the first `keep` parts on `tape`, which holds those of the first `shared` already."""
    del tape[min(shared, keep) :]
    tape += [None] * (keep - len(tape))

    def remember(place: int) -> Callable[..., None]:
        def hook(_: Any, __: Any, output: Any) -> None:
            tape[place] = output

        return hook

    with ExitStack() as stack:
        for place in range(shared, keep):
            stack.callback(variant.steps[place][1].register_forward_hook(remember(place)).remove)
        yield


def step_macs(family: Family, size: Size | None, ordered: Sequence[Variant]) -> dict[str, int]:
    """MACs of every step of every variant for one latent, by name; a part's modules count at its first."""
    by_step: dict[str, int] = {}
    inputs = example_inputs.unet_inputs(family, size=size, device="meta")
    words = {tuple(name.split(" ")[:3]) for variant in ordered for name in variant.names}
    kinds = sorted({(name, options) for _, name, options in words if name} | {("", "")})
    for name, options in kinds:
        unet = loading.meta_unet(family)
        replaced = sorted(fqn for fqn, *kind in words if name and tuple(kind) == (name, options))
        edits = [ReplaceUnit(unit=fqn, with_=name, options=json.loads(options)) for fqn in replaced]
        if edits:
            surgery.apply_plan(unet, surgery.resolved_on(unet, edits))
        counted = flops.count(unet, (), inputs, list(units.iter_parts(unet)))
        by_step |= {f"{fqn} {name} {options}": part.macs for fqn, part in counted.by_part.items()}
    return {
        step: by_step[" ".join(step.split(" ")[:3])] if step.endswith(" 0") else 0
        for variant in ordered
        for step in variant.names
    }


def work_of(ordered: Sequence[Variant], macs: dict[str, int], reuse: bool) -> dict[str, float]:
    """Forwards, in units of the teacher's: the plain loop, the least possible (each prefix once), and the actual."""
    plain = [sum(macs[name] for name in variant.names) for variant in ordered]
    prefixes = {variant.names[: i + 1] for variant in ordered for i in range(len(variant.steps))}
    done = [sum(macs[name] for name in variant.names[variant.shared if reuse else 0 :]) for variant in ordered]
    teacher = plain[0]
    return {
        "plain_forwards": sum(plain) / teacher,
        "least_forwards": sum(macs[prefix[-1]] for prefix in prefixes) / teacher,
        "done_forwards": sum(done) / teacher,
    }
