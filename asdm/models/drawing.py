"""What `asdm generate` does with a pipeline: text to image, image to image, with a ControlNet, by any sampler."""

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from asdm.models import checkpoints
from asdm.models.adapters import fit_control
from asdm.models.example_inputs import latent_sides
from asdm.models.execution import dtype_of
from asdm.models.families import Family
from asdm.models.loading import meta_unet
from asdm.models.settings import SCHEDULERS, GenerateSettings, sampler_named
from asdm.models.student import StudentUNet
from asdm.plan.edits import PruningPlan
from asdm.unet import blocks, config
from asdm.unet.surgery import resolved_on
from asdm.utils.pictures import read_picture
from asdm.utils.progress import Tell
from asdm.utils.record import read_json

ZERO_SNR = "rescale_betas_zero_snr"  # in the config of a sampler


def draw(
    pipe: Any,
    family: Family,
    prompts: Sequence[str],
    settings: GenerateSettings,
    student: str | None,
    tell: Tell,
    adapt: Callable[[Any], None] | None = None,
) -> list[Any]:
    """One image (PIL) for each prompt; the i-th has seed `settings.seed` + i.

    `adapt` may change the pipeline once its sampler is set. Raises ValueError for what `check` refuses, and for a
    ControlNet that cannot be used.
    """
    width, height = check(family, settings)
    options: dict[str, Any] = {
        "num_inference_steps": settings.steps,
        "guidance_scale": family.guidance_scale if settings.guidance_scale is None else settings.guidance_scale,
        "negative_prompt": settings.negative_prompt,
    }
    if settings.scheduler:
        pipe.scheduler = scheduler_by_name(pipe, settings.scheduler)
    if adapt:
        adapt(pipe)
    pipe, images = _with_images(pipe, family, settings, student, (width, height))
    options |= images
    if settings.init_image is None:  # an initial image has its own size
        options |= {"height": height, "width": width}
    steps = settings.steps if settings.init_image is None else int(settings.steps * settings.strength)
    pictures = []
    for i, prompt in enumerate(prompts):

        def after_step(_: Any, step: int, __: Any, values: dict[str, Any], done: int = i * steps) -> dict[str, Any]:
            tell("drawing", done + step + 1, None)
            return values

        generator = torch.Generator().manual_seed(settings.seed + i)
        pictures += pipe(prompt, generator=generator, callback_on_step_end=after_step, **options).images
    return pictures


def check(family: Family, settings: GenerateSettings) -> tuple[int, int]:
    """Width and height in pixels.

    Raises ValueError for a size that the family does not take, files that are not images, half a ControlNet, and a
    strength that leaves no step.
    """
    height, width = (family.vae_factor * side for side in latent_sides(family, settings.size))
    for path in filter(None, (settings.init_image, settings.control_image)):
        picture(path, (width, height))
    if bool(settings.control) != bool(settings.control_image):
        raise ValueError("a ControlNet needs its folder and an image; give both --control and --control-image.")
    if settings.init_image and int(settings.steps * settings.strength) < 1:
        raise ValueError(
            f"strength {settings.strength:g} of {settings.steps} steps leaves no step to draw; take more steps, or a "
            f"strength of at least {math.ceil(1e6 / settings.steps) / 1e6:g}."
        )
    return width, height


def scheduler_by_name(pipe: Any, name: str) -> Any:
    """A sampler with the config of a pipeline's own.

    Raises ValueError for an unknown name, and for one that cannot begin with noise alone where the model does.
    """
    import diffusers

    def makes(name: str) -> tuple[Any, str]:
        kind, _, algorithm = sampler_named(name).partition(" ")
        return getattr(diffusers, kind), algorithm

    def can(name: str) -> bool:
        return ZERO_SNR in inspect.signature(makes(name)[0].__init__).parameters

    if pipe.scheduler.config.get(ZERO_SNR) and not can(name):
        raise ValueError(
            f"this model begins with noise alone (zero terminal SNR), which the sampler {name} cannot; choose from "
            f"{', '.join(filter(can, SCHEDULERS))}."
        )
    kind, algorithm = makes(name)
    return kind.from_config(pipe.scheduler.config, **({"algorithm_type": algorithm} if algorithm else {}))


def sampler_mark(scheduler: Any) -> str:
    """What tells samplers apart: the class, and the algorithm of one that has several."""
    kind, algorithm = type(scheduler).__name__, scheduler.config.get("algorithm_type", "dpmsolver++")
    return kind if algorithm == "dpmsolver++" else f"{kind} {algorithm}"


def _with_images(
    pipe: Any, family: Family, settings: GenerateSettings, student: str | None, size: tuple[int, int]
) -> tuple[Any, dict[str, Any]]:
    """The pipeline for what images there are, and its options for them."""
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image

    if settings.control is None and settings.init_image is None:
        return pipe, {}
    more = {"controlnet": _controlnet(pipe, family, settings, student)} if settings.control else {}
    options: dict[str, Any] = {}
    maker: Any = AutoPipelineForText2Image
    if settings.init_image:
        maker = AutoPipelineForImage2Image
        options |= {"image": picture(settings.init_image, size), "strength": settings.strength}
    if settings.control_image:
        options["control_image" if settings.init_image else "image"] = picture(settings.control_image, size)
    changed = maker.from_pipe(pipe, **more)
    if settings.init_image:
        changed.prepare_latents = _in_dtype(changed.prepare_latents, pipe.unet.dtype)
    changed.set_progress_bar_config(disable=True)
    return changed, options


def _in_dtype(prepare_latents: Any, dtype: torch.dtype) -> Any:
    """The same in the UNet's dtype: a VAE that computes in fp32 by itself gives latents in fp32."""
    return lambda *args, **kwargs: prepare_latents(*args, **kwargs).to(dtype)


def picture(path: str, size: tuple[int, int]) -> Any:
    """An image file in RGB at a size in pixels; raises ValueError for any other file."""
    from PIL import Image

    return read_picture(Path(path)).resize(size, Image.Resampling.LANCZOS)


def check_control(folder: Path) -> None:
    """Raises ValueError for a folder without weights, such as a pickle, and for sizes that no ControlNet has."""
    checkpoints.weight_files(folder)
    config.check_sizes(read_json(folder / "config.json"), str(folder / "config.json"))


def _controlnet(pipe: Any, family: Family, settings: GenerateSettings, student: str | None) -> Any:
    """A teacher's ControlNet, and a plain student made to take its residuals (a `StudentUNet` does so by itself)."""
    from diffusers import ControlNetModel

    if (folder := Path(str(settings.control))).is_dir():
        check_control(folder)
    name = str(settings.control)
    control = checkpoints.pretrained(
        ControlNetModel, name, f"the ControlNet {name}", torch_dtype=dtype_of(settings.dtype)
    )
    width = control.config.cross_attention_dim
    if width != family.unet.get("cross_attention_dim"):
        raise ValueError(
            f"{settings.control} is not a ControlNet for {family.name}: its cross_attention_dim is {width}, not "
            f"{family.unet.get('cross_attention_dim')}."
        )
    factor = 2 ** (len(control.config.conditioning_embedding_out_channels) - 1)
    if factor != family.vae_factor:
        raise ValueError(
            f"{settings.control} is not a ControlNet for {family.name}: it takes {factor} pixels per latent pixel, not "
            f"{family.vae_factor}."
        )
    if student and not isinstance(pipe.unet, StudentUNet):
        teacher, plan = meta_unet(family), Path(student) / "plan.json"
        if plan.exists():
            fit_control(pipe.unet, blocks.skips(teacher), resolved_on(teacher, PruningPlan.load(plan)))
        elif len(blocks.skips(pipe.unet)) != len(blocks.skips(teacher)):
            raise ValueError(
                f"{student} does not say which skips of its teacher it has, so that a ControlNet would be paired with "
                "the wrong ones; name the folder that asdm build or asdm distill wrote."
            )
    return control.to(settings.device)
