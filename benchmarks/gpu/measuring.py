"""The stages that measure UNets: profiles, predictions, students in pairs, memory."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from asdm.plan.edits import PruningPlan
from asdm.records.bench import BenchResult
from asdm.utils import console
from asdm_prof.records import Comparison, Profile, Validation
from benchmarks.gpu.context import Context, Part
from benchmarks.gpu.records import MemoryCase, MemoryCheck

BATCHES = (1, 2)  # one image, and both halves of guidance
BUDGET = "0.8"
PLANS = 12
STUDENTS = ("a_sdm", "a_sdm_clme", "bk_sdm_base")
COMPILED = ("compiled", "compiled:reduce-overhead")


def part_name(backend: str, batch: int) -> str:
    return f"{backend}, batch {batch}"


# ---------------------------------------------------------------------------------------------- profiles


def profile(context: Context) -> list[Part]:
    """SD 1.5 in every execution at every batch, how alike they rank, and the plan of the best one."""
    runs = [(backend, batch) for batch in BATCHES for backend in context.executions]
    parts = [Part(part_name(*run), partial(profile_of, context, context.family, *run, budget_s=15.0)) for run in runs]
    names = tuple(part.name for part in parts)
    made_of_them = [Part("comparison", partial(_compare, context), names), Part("plan", partial(_plan, context), names)]
    return [*parts, *made_of_them]


def profile_of(context: Context, family: str, backend: str, batch: int, budget_s: float) -> Profile:
    """One profile; a backend that does not run here refuses."""
    from asdm_prof.cli.progress import watching
    from asdm_prof.profiler.profile import profile as measure
    from asdm_prof.profiler.settings import ProfileSettings

    context.require_backend(backend)
    settings = ProfileSettings(
        device=context.device, dtype=context.dtype, batch=batch, backend=backend,
        time_budget_s=context.seconds(budget_s), weights=weights_of(family),
    )  # fmt: skip
    with watching("Profiling") as watch:
        return measure(family, settings, watch, command=context.command)


def weights_of(family: str) -> str | None:
    """Random weights for a config, which times need no more than; a family's own otherwise."""
    from asdm.models.execution import RANDOM

    return RANDOM if family.endswith(".json") else None


def _compare(context: Context) -> Comparison:
    from asdm_prof.analysis import transfer

    profiles = context.files.results("profile", Profile)
    sources = [(profile, name) for name, profile in profiles.items()]
    return transfer.compare(sources, budget=BUDGET, command=context.command)


def _plan(context: Context) -> PruningPlan:
    import asdm_prof

    return asdm_prof.plan(context.earlier("profile", part_name(context.best, 1), Profile), BUDGET)


def sdxl(context: Context) -> list[Part]:
    """SDXL in the best execution at the batch of a guided step; a small one where it is only tried out."""
    batch = 1 if context.smoke else 2
    return [Part(part_name(backend, batch), partial(_sdxl, context, backend, batch)) for backend in context.graphs]


def _sdxl(context: Context, backend: str, batch: int) -> Profile:
    family = str(_small_sdxl(context.work)) if context.smoke else "sdxl"
    return profile_of(context, family, backend, batch, budget_s=25.0)


def _small_sdxl(folder: Path) -> Path:
    """SDXL with narrow layers."""
    narrow = {"sample_size": 16, "block_out_channels": [32, 64, 64], "transformer_layers_per_block": [1, 1, 2],
              "attention_head_dim": [2, 4, 4], "cross_attention_dim": 32, "addition_time_embed_dim": 32,
              "projection_class_embeddings_input_dim": 256, "norm_num_groups": 8}  # fmt: skip
    return _changed(folder / "small-sdxl.json", "sdxl", narrow)


def _changed(path: Path, family: str, changes: dict[str, Any]) -> Path:
    """A family's config with some of it changed, as a file."""
    import json

    from asdm.models.families import load_family

    path.write_text(json.dumps(load_family(family).unet | changes, allow_nan=False), encoding="utf-8")
    return path


# ---------------------------------------------------------------------------------------------- predictions, students


def validate(context: Context) -> list[Part]:
    """Random plans against their predictions, one image at a time."""
    return [Part(part_name(backend, 1), partial(_validate, context, backend)) for backend in context.graphs]


def _validate(context: Context, backend: str) -> Validation:
    from asdm_prof.planner import validate as validation
    from asdm_prof.planner.settings import ValidateSettings

    context.require_backend(backend)
    measured = context.earlier("profile", part_name(backend, 1), Profile)
    settings = ValidateSettings(plans=3 if context.smoke else PLANS, time_budget_s=context.seconds(3.0))
    with console.progress("Validating") as tell:
        return validation.validate(context.family, measured, settings, tell=tell, command=context.command)


def bench(context: Context) -> list[Part]:
    """The presets and the plan at 0.8 in pairs with the teacher, at batch 1 and in a guided step."""
    return [Part(backend, partial(bench_of, context, backend, STUDENTS)) for backend in context.executions]


def compiled(context: Context) -> list[Part]:
    """Three students under torch.compile at the batch of a guided step; every network is compiled by itself."""
    students = (STUDENTS[0], STUDENTS[2])
    family = str(_small_sd(context.work)) if context.smoke else context.family
    options: dict[str, Any] = {"batch": 2, "guidance_scale": 1.0, "family": family, "planned": not context.smoke}
    return [Part(mode, partial(bench_of, context, mode, students, **options)) for mode in COMPILED]


def _small_sd(folder: Path) -> Path:
    """A Stable Diffusion of two levels, which is compiled in seconds."""
    narrow = {"sample_size": 8, "block_out_channels": [16, 32], "norm_num_groups": 4, "cross_attention_dim": 32,
              "attention_head_dim": 2, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
              "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}  # fmt: skip
    return _changed(folder / "small-sd.json", "sd15", narrow)


def bench_of(
    context: Context,
    backend: str,
    students: Sequence[str],
    family: str = "",
    planned: bool = True,
    budget_s: float = 10.0,
    **settings: Any,
) -> BenchResult:
    """Students in pairs with their teacher, the plan at 0.8 among them where it is of this teacher (`planned`)."""
    from asdm.evaluate.benchmark import bench as compare
    from asdm.evaluate.settings import BenchSettings

    context.require_backend(backend)
    sources, family = list(students), family or context.family
    if planned:
        plan = context.earlier("profile", "plan", PruningPlan)
        sources.append(str(plan.save(context.work / "plan.json", force=True)))
    chosen = BenchSettings(
        device=context.device, dtype=context.dtype, backend=backend, time_budget_s=context.seconds(budget_s),
        weights=weights_of(family), **settings,
    )  # fmt: skip
    with console.progress("Comparing") as tell:
        return compare(family, sources, chosen, tell, context.command)


# ---------------------------------------------------------------------------------------------- memory


def memory(context: Context) -> list[Part]:
    """What a call was counted to hold at its peak, against what it held."""
    return [Part("eager", partial(_memory, context))]


def _memory(context: Context) -> MemoryCheck:
    context.require_gpu("torch keeps count of a GPU's memory alone")
    from asdm.measure import gpu, machine
    from asdm.models import example_inputs, loading
    from asdm.models.families import load_family
    from asdm.unet import flops

    family, dtype, cases = load_family(context.family), context.dtype, []
    shapes = loading.meta_unet(family, dtype)
    unet = loading.load_unet(family, device=context.device, dtype=dtype)
    with machine.quiet_torch(None, context.device):
        for batch in (1, 2, 8):
            counted = flops.count(shapes, (), example_inputs.unet_inputs(family, batch, device="meta", dtype=dtype))
            inputs = example_inputs.unet_inputs(family, batch, device=context.device, dtype=dtype)
            call = partial(unet, **inputs)
            call()
            measured = gpu.peak_bytes(call, context.device, counted.parameter_bytes)
            cases.append(MemoryCase(batch=batch, counted_bytes=counted.peak_memory_bytes, measured_bytes=measured))
    return MemoryCheck(family=family.name, dtype=dtype, size=family.size, cases=tuple(cases))


# ---------------------------------------------------------------------------------------------- the mini


def mini(context: Context) -> list[Part]:
    """A minute on the mini, which shows what crashes: profiles, students in pairs, a few training steps."""
    from benchmarks.gpu.training import few_steps

    profiles = [
        Part(f"profile, {backend}", partial(profile_of, context, "mini", backend, 2, budget_s=5.0))
        for backend in context.executions
    ]
    compare = partial(bench_of, context, students=STUDENTS[:2], family="mini", planned=False, budget_s=4.0)
    benches = [Part(f"bench, {backend}", partial(compare, backend)) for backend in context.executions]
    return [*profiles, *benches, Part("training", partial(few_steps, context))]
