"""Who is compared: our schedules and presets, and the peers' packages as their documentation says."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from typing import Any

from torch import nn

from asdm.evaluate.generation import DRAWN_AT_ONCE
from asdm.models.families import Family
from asdm.models.loading import weights_sha256
from asdm.models.settings import Setup
from asdm.records.levers import Levers
from asdm.schedule import presets
from asdm.schedule.graphs import fast
from asdm.schedule.schedule import TEACHER, Schedule
from asdm.schedule.unet import schedule_pipeline, use
from asdm.unet import blocks
from asdm.utils.record import sha256_of

Call = Callable[..., Any]  # a pipeline's __call__


@dataclass(frozen=True)
class Contestant:
    """`install` changes a pipeline that has a UNet of its own, and gives what is called instead of it."""

    name: str
    setting: str
    of: str
    install: Callable[[Any], Call]
    steps: tuple[str, ...] = ()
    batch: int = DRAWN_AT_ONCE  # pictures that it draws at once
    made_of: str = ""  # hash of its schedule and networks, where the setting does not tell them

    @property
    def title(self) -> str:
        return f"{self.name} {self.setting}".strip()


@contextmanager
def installed(contestant: Contestant, pipe: Any) -> Iterator[Call]:
    """The contestant's call within the block; the pipeline's own UNet comes back whatever was done to its copy."""
    unet = pipe.unet
    pipe.register_modules(unet=copy.deepcopy(unet))
    try:
        yield contestant.install(pipe)
    finally:
        pipe.register_modules(unet=unet)
        vars(pipe).pop("tgate", None)


def plain() -> Contestant:
    return Contestant("plain", "", "diffusers", lambda pipe: pipe)


def by_preset(source: str, steps: int) -> Contestant:
    """A peer's published schedule as a preset of ours."""

    def install(pipe: Any) -> Call:
        schedule_pipeline(pipe, presets.make(source, blocks.topology(pipe.unet), steps, "mini"))
        return pipe

    name, _, setting = source.partition(":")
    return Contestant(f"{name} (preset)", setting, "preset", install)


def planned(name: str, schedule: Schedule, students: Mapping[str, nn.Module]) -> Contestant:
    """One of our own schedules, with the networks that it names besides the teacher."""

    def install(pipe: Any) -> Call:
        schedule_pipeline(pipe, schedule, students)
        return pipe

    return Contestant("ours", name, "ours", install, schedule.steps, made_of=_hash(students, schedule))


def student_alone(name: str, unet: nn.Module) -> Contestant:
    """A student in the teacher's place, every step in full."""

    def install(pipe: Any) -> Call:
        pipe.register_modules(unet=unet)
        return pipe

    return Contestant("student", name, "student", install, made_of=_hash({name: unet}))


def in_runtime(
    setting: str, levers: Levers, unet: nn.Module, schedule: Schedule, students: Mapping[str, nn.Module],
    family: Family, setup: Setup, guidance_scale: float,
) -> Contestant:  # fmt: skip
    """A network by a schedule in another runtime; its graphs are made and opened once, and take one picture."""
    networks = {TEACHER: unet, **students}
    opened = cache(lambda: fast.opened(levers, networks, schedule, family, setup, guidance_scale, lambda *_: None))

    def install(pipe: Any) -> Call:
        use(pipe, opened())
        return pipe

    name, made_of = f"{levers.runtime} {levers.precision}", _hash(networks, schedule)
    return Contestant(name, setting, "levers", install, schedule.steps, batch=1, made_of=made_of)


def _hash(networks: Mapping[str, nn.Module], schedule: Schedule | None = None) -> str:
    weights = {name: weights_sha256(unet) for name, unet in networks.items()}
    return sha256_of([weights, schedule.model_dump(mode="json") if schedule else None])


# ---------------------------------------------------------------------------------------------- packages


def deepcache(interval: int, branch: int) -> Contestant:
    """DeepCacheSDHelper, as in its README."""

    def install(pipe: Any) -> Call:
        from DeepCache import DeepCacheSDHelper

        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=interval, cache_branch_id=branch)

        def call(*args: Any, **kwargs: Any) -> Any:
            helper.enable()  # a start for each image: the helper keeps what the last one left
            try:
                return pipe(*args, **kwargs)
            finally:
                helper.disable()

        return call

    return Contestant("DeepCache", f"interval={interval},branch={branch}", _version("DeepCache"), install)


def t_gate(step: int, sp_interval: int = 5, fi_interval: int = 1, warm_up: int = 2) -> Contestant:
    """TgateSDLoader, as in its README."""

    def install(pipe: Any) -> Call:
        from tgate import TgateSDLoader

        TgateSDLoader(pipe)
        options = {"gate_step": step, "sp_interval": sp_interval, "fi_interval": fi_interval, "warm_up": warm_up}
        return partial(pipe.tgate, **options)

    setting = f"step={step},sp_interval={sp_interval},fi_interval={fi_interval}"
    return Contestant("T-GATE", setting, _version("tgate"), install)


def tome(ratio: float, max_downsample: int = 1) -> Contestant:
    """tomesd.apply_patch, as in its README."""

    def install(pipe: Any) -> Call:
        import tomesd

        tomesd.apply_patch(pipe, ratio=ratio, max_downsample=max_downsample)
        return pipe

    return Contestant("ToMe", f"ratio={ratio}", _version("tomesd"), install)


def pyramid_attention(skip: int) -> Contestant:
    """diffusers' PyramidAttentionBroadcast on spatial and cross-attentions, with its default range of timesteps."""

    def install(pipe: Any) -> Call:
        from diffusers import PyramidAttentionBroadcastConfig
        from diffusers.hooks import HookRegistry, apply_pyramid_attention_broadcast

        now = {"t": 0}
        forward = pipe.unet.forward

        def watched(sample: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
            now["t"] = int(timestep)
            return forward(sample, timestep, *args, **kwargs)

        pipe.unet.forward = watched
        apply_pyramid_attention_broadcast(
            pipe.unet,
            PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=skip, cross_attention_block_skip_range=skip,
                spatial_attention_block_identifiers=("blocks",), cross_attention_block_identifiers=("blocks",),
                current_timestep_callback=lambda: now["t"],
            ),
        )  # fmt: skip
        registry = HookRegistry.check_if_exists_or_initialize(pipe.unet)

        def call(*args: Any, **kwargs: Any) -> Any:
            registry.reset_stateful_hooks()
            return pipe(*args, **kwargs)

        return call

    return Contestant("PAB", f"range={skip}", f"diffusers {metadata.version('diffusers')}", install)


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} (not installed)"


def all_of(steps: int, ours: Iterable[Contestant]) -> list[Contestant]:
    """Plain first, then ours, the peers, and their schedules as presets."""
    return [
        plain(),
        *ours,
        *(deepcache(interval, branch) for interval, branch in ((2, 0), (3, 0), (5, 0))),
        *(t_gate(step) for step in (20, 15, 10)),
        *(by_preset(f"every_n:n={n}", steps) for n in (2, 3)),
        *(by_preset(f"deepcache:interval={interval},branch=0", steps) for interval in (2, 3, 5)),
        *(by_preset(f"t_gate:step={step}", steps) for step in (15, 10, 5)),
        *(tome(ratio) for ratio in (0.25, 0.5, 0.75)),
        *(pyramid_attention(skip) for skip in (2, 3, 4)),
    ]
