"""The damage of edits, measured on real weights and data: E‖output of the student − output of the teacher‖².

Pictures and captions of a data set, as latents noised at timesteps spread over the schedule, pass teacher and students;
no student is trained. The output is what the UNet predicts (ε, or v for v-prediction), the error its mean square per
element, its interval a bootstrap over prompts (LAPTOP-Diff's criterion).

Nothing is computed twice. A forward is a sequence of parts, and what a part gives depends on the parts before it and on
which of their outputs it takes as its skip. So students are sorted by their sequences, and each takes the outputs of
the parts that it shares with the one before it from there; in sorted order that is as much as it shares with any. The
real forward runs all the same, with the shared parts answering from memory: the numbers are those of the plain loop, to
the bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from asdm.measure import clocks, machine, statistics
from asdm.models import example_inputs, execution, loading, pipeline
from asdm.models.families import Family, load_family
from asdm.plan.edits import AnyEdit, RemoveBlock, RemoveLayer, RemoveUnit, ReplaceUnit
from asdm.plan.legality import legal_layer_sets, resolve, why_no_identity
from asdm.unet import blocks as units
from asdm.unet import flops, surgery
from asdm.unet.replacements import shared_copy
from asdm.utils import registry
from asdm.utils.io import Record, sha256_of
from asdm_prof.records import Interval, Work

Edits = tuple[AnyEdit, ...]
Tell = Callable[[str, int, float | None], None]
# A removed unit is an edit of its own; experts (§2.3) start exactly as the unit that they replace, so they do no damage
# and only training shows what they are worth.
NOT_MEASURED = ("pass_through", "cond_conv")
SAMPLES_AT_ONCE = 64  # latents in one call


@dataclass(frozen=True)
class SensitivitySettings(execution.Setup):
    """What is measured on; `size`, `dtype`, … are the teacher's, and `batch` is not used."""

    data: str = "emoji"
    split: str = "train"
    prompts: int = 64
    timesteps: int = 8
    reuse: bool = True  # False: the plain loop over edits, to compare with


@dataclass(frozen=True)
class Measured:
    """Errors of every set of edits, and what it took."""

    samples: np.ndarray  # (sets, prompts, timesteps): mean square per element
    overlap: np.ndarray  # (sets, sets): mean product per element of two sets' output errors; the diagonal is the damage
    teacher_power: float  # mean square per element of the teacher's output
    timesteps: tuple[int, ...]
    captions: tuple[str, ...]
    prediction_type: str
    weights: str
    weights_sha256: str
    config_sha256: str
    threads: int
    work: Work
    sets: tuple[Edits, ...]
    unit_scores: dict[str, dict[str, float]]  # score → unit that may become an identity → value


def damage_of(samples: np.ndarray) -> Interval:
    """Mean over (prompts, timesteps) with its 95 % bootstrap interval over prompts."""
    found = statistics.estimate(samples.mean(axis=1).tolist(), np.mean)
    return Interval(value=found.median, low=found.low, high=found.high)


# ---------------------------------------------------------------------------------------------- edits


def legal_edits(unet: nn.Module, names: Sequence[str] | None = None) -> list[Edits]:
    """Every edit of a teacher that is legal by itself, with what must go along, in a fixed order.

    Units one by one, `names` of replacements where they apply (None: all that change the output), layers with their
    mirrored ones, the middle block, the deepest pair with it. Raises ValueError for an unknown replacement.
    """
    shape = units.topology(unet)
    chosen = [n for n in registry.names("asdm.unet.replacements") if n not in NOT_MEASURED] if names is None else names
    found: list[Edits] = [(RemoveUnit(unit=u.fqn),) for u in shape.units if not why_no_identity(shape, u)]
    for name in chosen:
        replace = registry.load("asdm.unet.replacements", name).replace
        for unit in shape.units:
            if replace(unet.get_submodule(unit.fqn), units.siblings(unet, unit.fqn)) is not None:
                found.append((ReplaceUnit(unit=unit.fqn, with_=name),))
    for down in shape.down_blocks:
        for removed in legal_layer_sets(shape, down)[1:]:
            found.append(tuple(RemoveLayer(block=block, layer=layer) for block, layer in removed))
    mid: Edits = (RemoveBlock(block="mid_block"),) if "mid_block" in shape.blocks else ()
    deepest: Edits = (RemoveBlock(block=shape.down_blocks[-1]),) if len(shape.down_blocks) > 1 else ()
    blocks = ([mid] if mid else []) + ([(*deepest, *mid)] if deepest else [])
    return found + [edits for edits in blocks if is_legal(unet, edits)]


def is_legal(unet: nn.Module, edits: Edits) -> bool:
    """Whether a teacher allows these edits together."""
    try:
        resolve(units.topology(unet), edits)
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------------------------------------- students


@dataclass
class Variant:
    """A student that shares the teacher's tensors, and the parts that its forward passes, in order.

    `steps` are (what it is and which skip it takes, the module): two students whose first k names agree compute the
    same up to there.
    """

    index: int  # -1: the teacher
    unet: nn.Module
    steps: list[tuple[str, nn.Module]]
    shared: int = 0  # how many steps it has in common with the variant before it

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.steps)


def variants(teacher: nn.Module, sets: Sequence[Edits]) -> list[Variant]:
    """Teacher and students in the order in which neighbours share most; the teacher is the first."""
    found = [_variant(teacher, (), -1)] + [_variant(teacher, edits, i) for i, edits in enumerate(sets)]
    order: dict[str, int] = {}
    for variant in found:
        for name in variant.names:
            order.setdefault(name, len(order))
    found.sort(key=lambda variant: (variant.index >= 0, [order[name] for name in variant.names]))
    for before, after in pairwise(found):
        after.shared = _in_common(before.names, after.names)
    return found


def _variant(teacher: nn.Module, edits: Edits, index: int) -> Variant:
    unet = shared_copy(teacher)
    applied = surgery.apply_plan(unet, edits)
    options = {e.unit: json.dumps(e.options, sort_keys=True) for e in edits if isinstance(e, ReplaceUnit)}
    parts, steps = list(units.iter_parts(unet)), []
    taken = _skips_taken(unet, parts)
    for part in parts:
        fqn = applied.name_map[part.fqn]
        name = f"{fqn} {applied.replaced.get(fqn, '')} {options.get(fqn, '')}{taken.get(part.fqn, '')}"
        steps += [(f"{name} {i}", module) for i, module in enumerate(part.modules)]
    return Variant(index, unet, steps)


def _skips_taken(unet: nn.Module, parts: Sequence[units.Part]) -> dict[str, str]:
    """ResNet that takes a skip → how many steps had been done when that was made.

    It belongs to the step's name: without a layer and with a layer that does nothing, a student's steps read alike, but
    in one of them every later skip is another.
    """
    ends, done = {}, 0
    for part in parts:
        done += len(part.modules)
        ends[part.fqn if part.layer is None else f"{part.block}.layer.{part.layer}"] = done
    made, last = {}, 0
    for producer in units.skips(unet):
        made[producer] = last = ends.get(producer, last)
    return {consumer: f"@{made[producer]}" for producer, consumer in units.skip_pairs(unet)}


def _in_common(a: Sequence[str], b: Sequence[str]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# ---------------------------------------------------------------------------------------------- one pass


def outputs(
    ordered: Sequence[Variant], inputs: dict[str, Any], reuse: bool = True
) -> Iterator[tuple[Variant, torch.Tensor]]:
    """The output of every variant for one batch; at most one forward's activations are held."""
    tape: list[Any] = []
    for n, variant in enumerate(ordered):
        shared = variant.shared if reuse else 0
        keep = ordered[n + 1].shared if reuse and n + 1 < len(ordered) else 0
        with _answering(variant, tape[:shared]), _recorded(variant, shared, keep, tape):
            yield variant, variant.unet(**inputs)[0]


@contextmanager
def _answering(variant: Variant, answers: Sequence[Any]) -> Iterator[None]:
    """The first parts answer from memory for the length of a `with`."""
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
    """Leave on `tape` what the first `keep` parts gave, of which the first `shared` are on it already."""
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


# ---------------------------------------------------------------------------------------------- work


def step_macs(family: Family, size: int | None, ordered: Sequence[Variant]) -> dict[str, int]:
    """MACs of every step of every variant for one latent, by name; a part's modules count at its first."""
    found: dict[str, int] = {}
    inputs = example_inputs.unet_inputs(family, size=size, device="meta")
    names = {name.split(" ")[1] for variant in ordered for name in variant.names} - {""}
    for name in ("", *sorted(names)):
        unet = loading.meta_unet(family)
        if name:
            wanted = {n.split(" ")[0] for v in ordered for n in v.names if n.split(" ")[1] == name}
            surgery.apply_plan(unet, [ReplaceUnit(unit=fqn, with_=name) for fqn in sorted(wanted)])
        counted = flops.count(unet, (), inputs, list(units.iter_parts(unet)))
        found |= {f"{fqn} {name}": macs.macs for fqn, macs in counted.by_part.items()}
    return {
        step: found[" ".join(step.split(" ")[:2])] if step.endswith(" 0") else 0
        for variant in ordered
        for step in variant.names
    }


def work_of(ordered: Sequence[Variant], macs: dict[str, int], reuse: bool) -> dict[str, float]:
    """In teacher's forwards: the plain loop, the least possible (every distinct beginning once), and what is done."""
    plain = [sum(macs[name] for name in variant.names) for variant in ordered]
    prefixes = {variant.names[: i + 1] for variant in ordered for i in range(len(variant.steps))}
    done = [sum(macs[name] for name in variant.names[variant.shared if reuse else 0 :]) for variant in ordered]
    teacher = plain[0]
    return {
        "plain_forwards": sum(plain) / teacher,
        "least_forwards": sum(macs[prefix[-1]] for prefix in prefixes) / teacher,
        "done_forwards": sum(done) / teacher,
    }


# ---------------------------------------------------------------------------------------------- calibration


@dataclass(frozen=True)
class Calibration:
    """Noised latents of prompts at timesteps: (prompts, timesteps, 4, h, w), and what the UNet is told."""

    noisy: torch.Tensor
    timesteps: torch.Tensor  # (timesteps,)
    states: torch.Tensor  # (prompts, tokens, width)
    captions: tuple[str, ...]

    def inputs(self, prompts: slice) -> dict[str, Any]:
        """Arguments of one call for some prompts at every timestep: prompt by prompt."""
        noisy, states = self.noisy[prompts], self.states[prompts]
        return {
            "sample": noisy.flatten(0, 1),
            "timestep": self.timesteps.repeat(len(noisy)),
            "encoder_hidden_states": states.repeat_interleave(len(self.timesteps), dim=0),
            "return_dict": False,
        }


def calibration(family: Family, unet: nn.Module, settings: SensitivitySettings) -> Calibration:
    """Pictures as latents noised at timesteps in the middle of equal stretches of the schedule, and their captions.

    The choice of pictures and the noise depend on the seed alone. Raises ValueError for a data set that is too small.
    """
    if family.unet.get("addition_embed_type"):
        raise ValueError(f"{family.name} is told more than a caption at each call; sensitivity knows one text encoder.")
    side = example_inputs.latent_size(family, settings.size) * family.vae_factor
    data = registry.load("asdm.data.datasets", settings.data).open_data(settings.split, side)
    if len(data) < settings.prompts:
        raise ValueError(f"prompts {settings.prompts} are more than the {len(data)} of {settings.data}.")
    made = pipeline.pipeline(family, unet, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    picks = torch.randperm(len(data), generator=generator)[: settings.prompts].tolist()
    shown = [data[i] for i in picks]
    pixels = torch.stack([example.image for example in shown]).to(settings.device, made.vae.dtype)
    latents = torch.cat([made.vae.encode(part).latent_dist.mean for part in pixels.split(8)])
    latents = (latents * made.vae.config.scaling_factor)[:, None].expand(-1, settings.timesteps, -1, -1, -1)
    steps = made.scheduler.config.num_train_timesteps
    times = torch.tensor([int((i + 0.5) * steps / settings.timesteps) for i in range(settings.timesteps)])
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    noisy = made.scheduler.add_noise(
        latents.flatten(0, 1), noise.flatten(0, 1), times.repeat(len(shown)).to(settings.device)
    )
    captions = [example.caption for example in shown]
    states = [made.encode_prompt(caption, settings.device, 1, False)[0] for caption in captions]
    return Calibration(noisy.view(latents.shape), times.to(settings.device), torch.cat(states), tuple(captions))


# ---------------------------------------------------------------------------------------------- cheap scores


def unit_scores(teacher: nn.Module, inputs: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Scores of every unit that may become an identity, by which others prune: parameters, magnitude, cosine change.

    Magnitude is the sum of squared weights; cosine change is 1 − the cosine of what goes in and what comes out, mean
    over one batch.
    """
    shape = units.topology(teacher)
    removable = [part for part in units.iter_units(teacher) if not why_no_identity(shape, shape.unit(part.fqn))]
    cosine: dict[str, float] = {}

    def looking_at(fqn: str) -> Callable[..., None]:
        def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            alike = nn.functional.cosine_similarity(before.flatten(1).float(), after.flatten(1).float())
            cosine[fqn] = float(1 - alike.mean())

        return hook

    with ExitStack() as stack:
        for part in removable:
            stack.callback(part.modules[0].register_forward_hook(looking_at(part.fqn), with_kwargs=True).remove)
        teacher(**inputs)
    weights = {
        part.fqn: sum(float(p.float().square().sum()) for p in part.modules[0].parameters()) for part in removable
    }
    return {
        "parameters": {part.fqn: float(part.params) for part in removable},
        "magnitude": weights,
        "cosine change": cosine,
    }


# ---------------------------------------------------------------------------------------------- measuring


class Batch(Record):
    """What one batch of prompts gave: sums that add up."""

    SCHEMA: ClassVar[str] = "asdm.damage-batch/1"
    schema_: Literal["asdm.damage-batch/1"] = Field("asdm.damage-batch/1", alias="schema")
    samples: tuple[tuple[tuple[float, ...], ...], ...]  # sets, prompts, timesteps
    overlap: tuple[tuple[float, ...], ...]  # sets, sets; times the batch's prompts
    teacher_power: float  # times the batch's prompts
    seconds: float
    forward_s: float  # of those, inside the UNets


class DamageRun(Record):
    """`asdm.damage-run/1`: what an unfinished run has measured so far."""

    SCHEMA: ClassVar[str] = "asdm.damage-run/1"
    schema_: Literal["asdm.damage-run/1"] = Field("asdm.damage-run/1", alias="schema")
    run_sha256: str  # of the teacher, the edits and everything that decides what is measured on
    batches: tuple[Batch, ...] = ()


def measure_damage(
    family: str | Family,
    sets: Sequence[Edits] | Callable[[nn.Module], Sequence[Edits]],
    settings: SensitivitySettings = SensitivitySettings(),
    run_file: Path | None = None,
    tell: Tell = lambda *_: None,
) -> Measured:
    """Errors of the students that each set of edits makes of a teacher; a run that is found in `run_file` goes on.

    `sets` may be a function of the teacher. Raises ValueError for settings that cannot be, an edit that does not fit,
    too little memory, or another run's file.
    """
    clock = clocks.HostClock()
    began = clock.mark()
    family = load_family(family) if isinstance(family, str) else family
    _check(settings)
    weights = settings.weights or loading.default_weights(family)
    tell("building the students", 0, None)
    teacher: Any = loading.load_unet(family, weights, settings.device, settings.dtype, settings.seed)
    sets = sets(teacher) if callable(sets) else sets
    with machine.quiet_torch(settings.threads) as threads:
        ordered = variants(teacher, sets)
        tell("preparing the data", 0, None)
        data = calibration(family, teacher, settings)
        sha256 = loading.weights_sha256(teacher)
        run = _open_run(run_file, sha256, sets, settings)
        resumed = len(run.batches)
        step = max(1, SAMPLES_AT_ONCE // settings.timesteps)
        slices = [slice(i, min(i + step, settings.prompts)) for i in range(0, settings.prompts, step)]
        for n, prompts in enumerate(slices[resumed:], resumed):
            each = float(np.mean([b.seconds for b in run.batches])) if run.batches else None
            left = None if each is None else each * (len(slices) - n)
            tell(f"batch {n + 1} of {len(slices)}, {len(sets)} students", 0, left)
            run = run.model_copy(update={"batches": (*run.batches, _batch(ordered, data, prompts, settings.reuse))})
            if run_file:
                run.save(run_file, force=True)
        scores = unit_scores(teacher, data.inputs(slices[0]))
    macs = step_macs(family, settings.size, ordered)
    forwards = work_of(ordered, macs, settings.reuse)
    forward_s = sum(batch.forward_s for batch in run.batches)
    least_s = forward_s * forwards["least_forwards"] / forwards["done_forwards"]
    seconds = clock.seconds(began, clock.mark()) + sum(batch.seconds for batch in run.batches[:resumed])
    overlap = np.sum([batch.overlap for batch in run.batches], axis=0) / settings.prompts
    return Measured(
        samples=np.concatenate([np.array(batch.samples) for batch in run.batches], axis=1),
        overlap=overlap,
        teacher_power=sum(batch.teacher_power for batch in run.batches) / settings.prompts,
        timesteps=tuple(data.timesteps.tolist()),
        captions=data.captions,
        prediction_type=family.prediction_type,
        weights=loading.weights_name(family, weights),
        weights_sha256=sha256,
        config_sha256=loading.unet_config_sha256(teacher.config),
        threads=threads,
        sets=tuple(sets),
        unit_scores=scores,
        work=Work(
            students=len(sets),
            seconds=seconds,
            forward_s=forward_s,
            least_s=least_s,
            reached=least_s / seconds,
            **forwards,
        ),
    )


def _check(settings: SensitivitySettings) -> None:
    execution.check_setup(settings)
    for name, least in (("prompts", 2), ("timesteps", 1)):
        if getattr(settings, name) < least:
            raise ValueError(f"{name} {getattr(settings, name)} is too few; choose {least} or more.")


def _open_run(run_file: Path | None, sha256: str, sets: Sequence[Edits], settings: SensitivitySettings) -> DamageRun:
    """The run that is found, where it is of the same; `weights` and `threads` decide nothing."""
    asked = {k: v for k, v in vars(settings).items() if k not in ("weights", "threads", "batch", "reuse")}
    edits = [[edit.model_dump(mode="json", by_alias=True) for edit in one] for one in sets]
    fresh = DamageRun(run_sha256=sha256_of([sha256, edits, asked]))
    if run_file is None or not run_file.exists():
        return fresh
    found = DamageRun.load(run_file)
    if found.run_sha256 != fresh.run_sha256:
        raise ValueError(
            f"{run_file} is an unfinished run of another teacher or with other options; repeat those, "
            "or delete the file."
        )
    return found


def _batch(ordered: Sequence[Variant], data: Calibration, prompts: slice, reuse: bool) -> Batch:
    clock = clocks.HostClock()
    began = mark = clock.mark()
    inputs = data.inputs(prompts)
    n, t = prompts.stop - prompts.start, len(data.timesteps)
    teacher, forward_s = None, 0.0
    errors: list[torch.Tensor] = [torch.empty(0)] * (len(ordered) - 1)
    for variant, out in outputs(ordered, inputs, reuse):
        out = out.float().cpu()
        forward_s += clock.seconds(mark, clock.mark())
        if teacher is None:
            teacher = out
        else:
            errors[variant.index] = out - teacher
        mark = clock.mark()
    assert teacher is not None
    found = torch.stack([squared(error).view(n, t) for error in errors]) if errors else torch.empty(0, n, t)
    flat = torch.stack([error.flatten() for error in errors]) if errors else torch.empty(0, 1)
    overlap = (flat @ flat.T).double() / (t * teacher[0].numel())
    return Batch(
        samples=found.tolist(),
        overlap=overlap.tolist(),
        teacher_power=float(squared(teacher).view(n, t).mean(1).sum()),
        seconds=clock.seconds(began, clock.mark()),
        forward_s=forward_s,
    )


def squared(error: torch.Tensor) -> torch.Tensor:
    """Mean square per element of each latent: (n, 4, h, w) → (n,), in double precision."""
    return error.double().square().mean((1, 2, 3))
