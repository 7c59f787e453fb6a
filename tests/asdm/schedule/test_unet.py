"""A scheduled UNet in pipelines: what it skips, inherits and forgets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from PIL import Image

from asdm.models.execution import RANDOM
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.models.student import build, read_plan
from asdm.schedule import presets
from asdm.schedule.schedule import Forecast, Pass, Schedule
from asdm.schedule.source import student_of
from asdm.schedule.unet import ScheduledUNet, schedule_pipeline
from asdm.unet import blocks
from tests.tiny import SMALLEST, TINY_FAMILY, TINY_WHOLE, make_unet, unet_args

N, SIDE = 4, 64
PASSES = {
    "full": Pass(),
    "branch": Pass(inherit=("mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2", "up_blocks.3.layer.0",
                            "up_blocks.3.layer.1", "down_blocks.1", "down_blocks.2", "down_blocks.3")),
    "units": Pass(inherit=("down_blocks.0.attentions.1", "up_blocks.3.resnets.1", "up_blocks.3.attentions.1"),
                  value="residual", forecast=Forecast(order=1)),
    "none": Pass(inherit=("unet",), forecast=Forecast(order=2)),
    "guide": Pass(unconditional=("unet",)),
    "drop": Pass(unconditional="drop", inherit=("cross_attention",), mean_of_halves=True),
}  # fmt: skip
MIXED = ("full", "guide", "none", "drop")


def schedule(steps: tuple[str, ...] = MIXED) -> Schedule:
    return Schedule(family="tiny", passes=PASSES, steps=steps)


def pipe_of(unet: Any, cls: Any = None, **more: Any) -> Any:
    pipe = pipeline(TINY_WHOLE, unet, Setup(weights=RANDOM))
    pipe = cls(**pipe.components, **more, requires_safety_checker=False) if cls else pipe
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, prompt: Any = "a heart", seed: int = 0, steps: int = N, **options: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sides = {} if "image" in options else {"height": SIDE, "width": SIDE}
    return pipe(
        prompt, num_inference_steps=steps, generator=generator, output_type="latent", **sides, **options
    ).images  # fmt: skip


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8))


class Counted:
    """How often every unit of a UNet computes."""

    def __init__(self, unet: Any) -> None:
        self.calls: dict[str, int] = {}
        for part in blocks.iter_units(unet):
            module: Any = part.modules[0]
            inner = module.conv1 if part.kind == "resnet" else module.proj_in
            inner.register_forward_hook(lambda *_, fqn=part.fqn: self.calls.update({fqn: self.calls.get(fqn, 0) + 1}))


@pytest.mark.parametrize("name", ["branch", "units"])
def test_inheriting_from_the_same_input_gives_the_same_output(tiny_unet: Any, name: str) -> None:
    """Nothing but what is inherited could differ, so a pass after a full one on the same input is exact."""
    scheduler = SimpleNamespace(timesteps=torch.tensor([7.0, 7.0]))
    scheduled = ScheduledUNet(tiny_unet, schedule(("full", name)), scheduler, guided=False)
    args = unet_args(batch=2)
    with torch.no_grad():
        whole = scheduled(**args)[0]
        scheduled._sample = None  # as if the same latents came again
        again = scheduled(**args)[0]
        plain = tiny_unet(**args)[0]
    assert torch.equal(whole, plain)
    assert torch.allclose(again, plain, atol=1e-5)
    assert "forward" not in {key for module in tiny_unet.modules() for key in vars(module)}


def test_what_is_inherited_is_not_computed(tiny_unet: Any) -> None:
    pipe, counted = pipe_of(tiny_unet), Counted(tiny_unet)
    schedule_pipeline(pipe, schedule(("full", "branch", "none", "full")))
    drawn(pipe)
    assert counted.calls["mid_block.resnets.0"] == 2
    assert counted.calls["up_blocks.3.resnets.2"] == counted.calls["down_blocks.0.resnets.0"] == 3
    assert counted.calls["up_blocks.3.resnets.1"] == 2


def test_a_full_schedule_changes_no_bit_and_a_mixed_one_does(tiny_unet: Any) -> None:
    plain = drawn(pipe_of(tiny_unet))
    pipe = pipe_of(tiny_unet)
    schedule_pipeline(pipe, schedule(("full",) * N))
    assert torch.equal(drawn(pipe), plain)
    schedule_pipeline(pipe, schedule())
    assert not torch.equal(drawn(pipe), plain)


def test_images_do_not_inherit_from_each_other(tiny_unet: Any) -> None:
    """A, B, A; also where B is another size, and where an image was left unfinished."""
    pipe = pipe_of(tiny_unet)
    schedule_pipeline(pipe, schedule(("full", "branch", "units", "none")))
    first = drawn(pipe)
    drawn(pipe, "a star", seed=1, guidance_scale=1.0)
    assert torch.equal(drawn(pipe), first)

    def stop(_: Any, step: int, *__: Any) -> Any:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        drawn(pipe, "a star", seed=2, callback_on_step_end=stop)
    assert torch.equal(drawn(pipe), first)


def test_a_batch_of_four_draws_what_four_images_draw(tiny_unet: Any) -> None:
    pipe = pipe_of(tiny_unet)
    schedule_pipeline(pipe, schedule())
    prompts = ["a heart", "a star", "a cat", "a moon"]
    latents = torch.randn(4, 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(3))
    together = drawn(pipe, prompts, latents=latents)
    alone = torch.cat([drawn(pipe, p, latents=latents[i : i + 1]) for i, p in enumerate(prompts)])
    assert torch.allclose(together, alone, atol=1e-4)


def test_guidance_in_two_calls_equals_guidance_in_one(tiny_unet: Any) -> None:
    table = SimpleNamespace(timesteps=torch.tensor([9.0, 7, 5, 3]))
    steps = schedule(("full", "branch", "guide", "none"))
    args = [unet_args(), unet_args(tokens=7)]
    args[1]["encoder_hidden_states"] = args[1]["encoder_hidden_states"].flip(1)
    one, two = ScheduledUNet(tiny_unet, steps, table), ScheduledUNet(tiny_unet, steps, table, calls=2)
    with torch.no_grad():
        for n, t in enumerate(table.timesteps):
            sample = args[0]["sample"] * (1 + n)
            both = {
                "sample": torch.cat([sample] * 2),
                "encoder_hidden_states": torch.cat([a["encoder_hidden_states"] for a in args]),
            }
            whole = one(timestep=t, return_dict=False, **both)[0]
            halves = [two(sample, t, a["encoder_hidden_states"], return_dict=False)[0] for a in args]
            assert torch.allclose(whole, torch.cat(halves), atol=1e-5)
    with pytest.raises(ValueError, match="drops the unconditional half, which needs guidance in one batch"):
        ScheduledUNet(tiny_unet, schedule(("full", "drop")), table, calls=2)
    one(sample, t, args[0]["encoder_hidden_states"])
    with pytest.raises(ValueError, match="set calls=2"):
        one(sample, t, args[1]["encoder_hidden_states"])


def test_a_dropped_half_is_no_guidance(tiny_unet: Any) -> None:
    pipe = pipe_of(tiny_unet)
    free = Schedule(family="tiny", passes={"free": Pass(unconditional="drop")}, steps=("free",) * N)
    plain = drawn(pipe, guidance_scale=1.0)
    schedule_pipeline(pipe, free)
    assert torch.allclose(drawn(pipe, guidance_scale=8.0), plain, atol=1e-4)


def test_img2img_starts_in_the_middle_of_a_schedule(tiny_unet: Any) -> None:
    pipe = pipe_of(tiny_unet, StableDiffusionImg2ImgPipeline)
    plain = drawn(pipe, image=picture(), strength=0.5)  # steps 2 and 3
    scheduled = schedule_pipeline(pipe, schedule(("full", "branch", "none", "full")))
    assert torch.equal(drawn(pipe, image=picture(), strength=0.5), plain)  # the first computes all, the second is full
    assert scheduled._step == N - 1
    first = drawn(pipe, image=picture(), strength=1.0)
    drawn(pipe, image=picture(), strength=0.5)
    assert torch.equal(drawn(pipe, image=picture(), strength=1.0), first)


def test_inpainting() -> None:
    pipe = pipe_of(make_unet(in_channels=9), StableDiffusionInpaintPipeline)
    mask = Image.fromarray(np.pad(np.full((32, 32), 255, np.uint8), 16))
    options = {"image": picture(), "mask_image": mask, "height": SIDE, "width": SIDE, "strength": 1.0}
    plain = drawn(pipe, **options)
    schedule_pipeline(pipe, schedule(("full",) * N))
    assert torch.equal(drawn(pipe, **options), plain)
    schedule_pipeline(pipe, schedule())
    assert torch.isfinite(drawn(pipe, **options)).all()


def test_controlnet(tiny_unet: Any) -> None:
    """The residuals of every step go into every pass that reads them."""
    torch.manual_seed(3)
    control = ControlNetModel.from_unet(tiny_unet).eval()
    for conv in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        torch.nn.init.normal_(conv.weight, std=0.1)
    pipe = pipe_of(tiny_unet, StableDiffusionControlNetPipeline, controlnet=control)
    plain = drawn(pipe, image=picture())
    schedule_pipeline(pipe, schedule(("full",) * N))
    assert torch.equal(drawn(pipe, image=picture()), plain)
    schedule_pipeline(pipe, schedule(("full", "branch", "guide", "drop")))
    strong, weak = (drawn(pipe, image=picture(), controlnet_conditioning_scale=scale) for scale in (1.0, 0.5))
    assert torch.isfinite(strong).all()
    assert not torch.equal(strong, weak)


@pytest.mark.parametrize("plan", ["bk_sdm_base", "bk_sdm_tiny", "a_sdm"])
def test_a_schedules_student_takes_the_teachers_controlnet(tiny_unet: Any, plan: str) -> None:
    torch.manual_seed(3)
    control = ControlNetModel.from_unet(tiny_unet).eval()
    for conv in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        torch.nn.init.normal_(conv.weight, std=0.1)
    student = student_of(plan, tiny_unet, TINY_FAMILY, Setup())
    pipe = pipe_of(student, StableDiffusionControlNetPipeline, controlnet=control)
    strong, weak = (drawn(pipe, image=picture(), controlnet_conditioning_scale=scale) for scale in (1.0, 0.5))
    assert torch.isfinite(strong).all()
    assert not torch.equal(strong, weak)


@pytest.mark.parametrize("sampler", [EulerDiscreteScheduler, DPMSolverMultistepScheduler, DDIMScheduler])
def test_one_schedule_skips_the_same_under_every_sampler(tiny_unet: Any, sampler: Any) -> None:
    pipe, counted = pipe_of(tiny_unet), Counted(tiny_unet)
    options = {"algorithm_type": "sde-dpmsolver++"} if sampler is DPMSolverMultistepScheduler else {}
    pipe.scheduler = sampler.from_config(pipe.scheduler.config, **options)
    schedule_pipeline(pipe, schedule(("full", "branch", "none", "full")))
    drawn(pipe)
    assert (counted.calls["mid_block.resnets.0"], counted.calls["up_blocks.3.resnets.2"]) == (2, 3)


def test_another_number_of_steps_is_refused(tiny_unet: Any) -> None:
    pipe = pipe_of(tiny_unet)
    schedule_pipeline(pipe, schedule())
    with pytest.raises(ValueError, match="a schedule of 4 UNet calls, and this sampler makes 6; draw with 4 steps"):
        drawn(pipe, steps=6)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="give the scheduled UNet the scheduler"):
        drawn(pipe)


def test_samplers_that_make_another_number_of_calls_are_told_the_steps_that_fit(tiny_unet: Any) -> None:
    pipe = pipe_of(tiny_unet)
    for sampler, offered in ((PNDMScheduler, "draw with 3 steps"), (HeunDiscreteScheduler, "choose another sampler")):
        pipe.scheduler = sampler.from_config(pipe.scheduler.config, skip_prk_steps=True)
        schedule_pipeline(pipe, schedule())
        with pytest.raises(ValueError, match=offered):
            drawn(pipe, steps=N)
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    schedule_pipeline(pipe, schedule())
    assert drawn(pipe, steps=3).shape[0] == 1  # as the message offers


def test_a_student_draws_the_first_steps_and_lora_reaches_the_teacher(tiny_unet: Any) -> None:
    student, _ = build(tiny_unet, read_plan("bk_sdm_base", tiny_unet, "tiny"))
    made = presets.make("switch:step=2,student=bk_sdm_base", blocks.topology(tiny_unet), N, "tiny")
    pipe, teacher, pupil = pipe_of(tiny_unet), Counted(tiny_unet), Counted(student)
    scheduled = schedule_pipeline(pipe, made, {"student": student})
    drawn(pipe)
    assert (teacher.calls["up_blocks.3.resnets.2"], pupil.calls["up_blocks.3.resnets.1"]) == (2, 2)
    assert scheduled.config is tiny_unet.config
    assert scheduled.dtype == torch.float32
    assert scheduled.set_attn_processor.__self__ is tiny_unet


def test_a_student_may_have_any_name(tiny_unet: Any) -> None:
    student, _ = build(tiny_unet, read_plan("bk_sdm_base", tiny_unet, "tiny"))
    passes = {"full": Pass(), "small": Pass(network="half-0.5")}
    own = Schedule(family="tiny", networks={"half-0.5": "half-0.5"}, passes=passes, steps=("small", "full"))
    pipe = pipe_of(tiny_unet)
    scheduled = schedule_pipeline(pipe, own, {"half-0.5": student})
    assert {id(one) for one in scheduled.parameters()} == {
        id(one) for one in (*tiny_unet.parameters(), *student.parameters())
    }
    by_both = drawn(pipe, steps=2)
    assert not torch.equal(by_both, drawn(pipe_of(tiny_unet), steps=2))


def test_a_lora_that_is_loaded_later_is_in_every_pass(tiny_unet: Any) -> None:
    from peft import LoraConfig

    pipe = pipe_of(tiny_unet)
    schedule_pipeline(pipe, schedule(("full", "branch", "units", "none")))
    before = drawn(pipe)
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(target_modules=["to_q", "to_v"], init_lora_weights=False))
    assert not torch.equal(drawn(pipe), before)
    pipe.unet.disable_adapters()
    assert torch.equal(drawn(pipe), before)


def test_a_scheduled_unet_compiles_its_networks(tiny_unet: Any) -> None:
    """The networks are compiled one by one; what is inherited around them stays Python."""
    small = make_unet(**SMALLEST)
    made = Schedule(family="tiny", passes={"full": Pass(), "none": Pass(inherit=("unet",))}, steps=("full", "none"))
    table = SimpleNamespace(timesteps=torch.tensor([2.0, 1.0]))
    scheduled = ScheduledUNet(small, made, table, guided=False)
    args = unet_args()
    call = (args["sample"], table.timesteps[0], args["encoder_hidden_states"])
    with torch.inference_mode():
        plain = scheduled(*call, return_dict=False)[0]
        scheduled.reset()
        small.compile(backend="eager")
        assert torch.allclose(scheduled(*call, return_dict=False)[0], plain, atol=1e-5)
