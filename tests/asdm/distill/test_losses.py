"""Loss terms: a contract for every file, hand-made arithmetic, and places read through the surgery's name map."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from asdm.distill import losses, recipes
from asdm.distill.dry_run import preview
from asdm.distill.losses import LossInputs, denoising, features, output, perceptual, perceptual_prediction
from asdm.distill.memory import saved_bytes
from asdm.distill.task import DistillationTask, Objective
from asdm.models import graft, student as students
from asdm.models.networks import Vgg
from asdm.plan import presets
from asdm.plan.edits import GraftBlock, PruningPlan
from asdm.unet import hooks
from asdm.unet.hooks import capture, captured_calls, comparable
from tests.asdm.distill.training import go, log_of, settings
from tests.tiny import hooks_on, make_unet, unet_args

DOWN_COSINE = '''"""Direction of what the down blocks output: 1 − cosine."""

from torch.nn.functional import cosine_similarity

COMPARES = "feature_maps"
MODES = ("end_to_end",)


def places(student, name_map):
    return tuple((f"down_blocks.{i}", name_map[f"down_blocks.{i}"]) for i in range(len(student.down_blocks)))


def loss(inputs):
    return sum(1 - cosine_similarity(ours.flatten(1), theirs.flatten(1)) for ours, theirs in inputs.maps)
'''
MAPS = ("features", "self_attention", "mid_block")


def student_of(teacher, preset: str):
    return students.build(teacher, students.read_plan(preset, teacher, "tiny"))


def loss_inputs(**changes) -> LossInputs:
    generator = torch.Generator().manual_seed(3)
    tensors = {name: torch.randn(3, 4, 8, 8, generator=generator) for name in
             ("prediction", "teacher_prediction", "target", "noisy")}  # fmt: skip
    return LossInputs(**tensors | {"alpha": torch.tensor([0.9, 0.5, 0.1]), "prediction_type": "epsilon"} | changes)


# ---------------------------------------------------------------------------------------------- features


def test_capture_gives_each_modules_map_and_leaves_nothing_hooked(tiny_unet):
    before = hooks_on(tiny_unet)
    with torch.no_grad(), capture(tiny_unet, ["down_blocks.0", "mid_block"]) as maps:
        out = tiny_unet(**unet_args())[0]
    assert hooks_on(tiny_unet) == before
    assert maps["down_blocks.0"].shape == (1, 32, 8, 8)  # behind the downsampler; of a tuple, the map
    assert maps["mid_block"].shape == (1, 64, 2, 2)
    assert torch.equal(out, tiny_unet(**unet_args())[0])


def test_capture_works_inside_a_wrapping_and_names_what_is_not_there(tiny_unet):
    class Wrapped(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    with torch.no_grad(), capture(Wrapped(tiny_unet), ["mid_block"]) as maps:
        tiny_unet(**unet_args())
    assert set(maps) == {"mid_block"}
    message = r"there is no module 'up_blocks\.9' in this UNet2DConditionModel"
    with pytest.raises(ValueError, match=message), capture(tiny_unet, ["mid_block", "up_blocks.9"]):
        pass
    assert hooks_on(tiny_unet) == {}


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_any_plan_has_its_places_without_a_typed_name(tiny_unet, preset):
    student, applied = student_of(tiny_unet, preset)
    places = comparable(student, tiny_unet, losses.find_places(MAPS, student, applied.name_map), unet_args())
    blocks = dict(places["features"])
    assert set(blocks.values()) <= {f"{side}_blocks.{i}" for side in ("down", "up") for i in range(4)}
    assert len(places["mid_block"]) == (0 if preset in ("bk_sdm_small", "bk_sdm_tiny") else 1)
    if preset == "bk_sdm_tiny":  # the deepest pair is gone: what is up_blocks.0 here was up_blocks.1
        assert blocks["up_blocks.0"] == "up_blocks.1"
        assert "down_blocks.2" not in blocks  # it lost its downsampler, so its map has another size
    else:
        assert len(blocks) == 8
    for ours, theirs in places["self_attention"]:
        student.get_submodule(ours)
        tiny_unet.get_submodule(theirs)
    if preset == "bk_sdm_base":  # layer 1 of up_blocks.3 went, and what followed moved up
        ours, theirs = (f"up_blocks.3.attentions.{i}.transformer_blocks.0.attn1" for i in (1, 2))
        assert (ours, theirs) in places["self_attention"]


# ---------------------------------------------------------------------------------------------- terms


@pytest.mark.parametrize("name", losses.names())
def test_every_file_is_a_loss_term(tiny_unet, name):
    """One fp32 value per image, 0 where student and teacher agree, and gradients for the student."""
    term = losses.load(name)
    assert set(term.MODES) <= set(losses.MODES)
    assert term.MODES
    maps = tuple((torch.randn(3, 8, 4, 4), torch.randn(3, 8, 4, 4)) for _ in range(2))
    if term.COMPARES == "predictions":
        maps = ()
    elif term.COMPARES == "feature_maps":
        assert term.MODES == ("end_to_end",)
        student, applied = student_of(tiny_unet, "a_sdm")
        places = term.places(student, applied.name_map)
        assert places
        assert all(student.get_submodule(ours) and tiny_unet.get_submodule(theirs) for ours, theirs in places)
    else:
        assert (term.COMPARES, term.MODES) == ("block_outputs", ("blockwise",))
    network = perceptual.LatentVgg(Vgg.load(), torch.randn(3, 5)) if losses.needs_network(name) else None
    if network:
        term.check_network(settings(data="emoji", vgg=None))
        with pytest.raises(ValueError, match=f"unknown {term.NETWORK} 'nowhere'"):
            term.check_network(settings(**{losses.network_setting(name): "nowhere"}))
        assert "bundled" in term.network_for(settings(data="emoji", vgg=None))
    one = loss_inputs(maps=maps, network=network)
    prediction = one.prediction.clone().requires_grad_()
    maps = tuple((ours.requires_grad_(), theirs) for ours, theirs in maps)
    value = term.loss(replace(one, prediction=prediction, maps=maps))
    assert (value.shape, value.dtype) == ((3,), torch.float32)
    value.sum().backward()
    assert all(tensor.grad is not None for tensor in ([prediction] if not maps else [ours for ours, _ in maps]))
    agreed = replace(one, prediction=one.target, teacher_prediction=one.target, maps=tuple((t, t) for _, t in maps))
    assert term.loss(agreed).abs().max() < 1e-6


def test_a_term_of_ones_own_is_one_file(tiny_pipeline, tmp_path, monkeypatch):
    """Its file's name takes a weight and appears in log, result and dry run; in another mode it is refused."""
    (tmp_path / "skips").mkdir()
    (tmp_path / "skips" / "down_cosine.py").write_text(DOWN_COSINE)
    monkeypatch.setattr(losses, "__path__", [*losses.__path__, str(tmp_path / "skips")])
    recipe = recipes.adjust(recipes.progressive_incubation, None, {"combined.down_cosine": 2.0})
    result = go(tiny_pipeline, tmp_path / "student", recipe=recipe, steps=2)
    line = log_of(tmp_path / "student")[1]
    assert 0 < line["down_cosine"] < 2
    assert result.stages[1].last["down_cosine"] == line["down_cosine"]
    (_, combined) = preview("a_sdm_clme", str(tiny_pipeline), settings(steps=2), recipe)
    assert (combined.weights["down_cosine"], combined.places["down_cosine"]) == (2.0, 2)
    blockwise = recipes.adjust(recipes.progressive_incubation, "blockwise", {"combined.down_cosine": 2.0})
    with pytest.raises(
        ValueError, match=r"no stage has a loss term 'combined\.down_cosine'; choose from .*down_cosine"
    ):
        go(tiny_pipeline, tmp_path / "other", recipe=blockwise, steps=2)


def test_every_term_is_a_mean_per_picture():
    one = loss_inputs()
    expected = (one.prediction - one.target).square().mean((1, 2, 3))
    torch.testing.assert_close(denoising.loss(one), expected)
    torch.testing.assert_close(output.loss(one), (one.prediction - one.teacher_prediction).square().mean((1, 2, 3)))


def test_min_snr_weighs_by_min_of_snr_and_gamma():
    snr = torch.tensor([9.0, 1.0, 1 / 9])
    torch.testing.assert_close(losses.snr_weight(loss_inputs(min_snr=5.0)), torch.tensor([5 / 9, 1.0, 1.0]))
    velocity = losses.snr_weight(loss_inputs(min_snr=5.0, prediction_type="v_prediction"))
    torch.testing.assert_close(velocity, torch.tensor([5 / 10, 1 / 2, (1 / 9) / (10 / 9)]))
    assert snr[0] > 5


@pytest.mark.parametrize("kind", losses.PREDICTIONS)
def test_target_and_clean_are_each_others_inverse(kind):
    clean, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    alpha = torch.tensor([0.9, 0.5, 0.1])
    noisy, target = losses.noisy_and_target(clean, noise, alpha, kind)
    again = losses.predicted_clean(loss_inputs(noisy=noisy, alpha=alpha, prediction_type=kind), target)
    torch.testing.assert_close(again, clean, rtol=1e-4, atol=1e-5)


def test_a_schedule_that_ends_in_pure_noise_is_for_v_prediction():
    """Zero terminal SNR: nothing is divided by ᾱ = 0, and ε-prediction is refused."""
    alphas = DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True).alphas_cumprod
    assert alphas[-1] == 0
    losses.check_schedule(alphas, "v_prediction", "the teacher")
    losses.check_schedule(DDIMScheduler().alphas_cumprod, "epsilon", "the teacher")
    with pytest.raises(ValueError, match=r"the teacher's noise schedule ends in pure noise, .*v_prediction"):
        losses.check_schedule(alphas, "epsilon", "the teacher")
    alpha = torch.tensor([float(alphas[-1]), 0.5, 0.1])
    inputs = loss_inputs(alpha=alpha, prediction_type="v_prediction", min_snr=5.0)
    noisy, target = losses.noisy_and_target(inputs.noisy, inputs.target, alpha, "v_prediction")
    assert torch.equal(noisy[0], inputs.target[0])
    assert torch.equal(target[0], -inputs.noisy[0])
    for value in (losses.snr_weight(inputs), losses.predicted_clean(inputs, inputs.prediction)):
        assert torch.isfinite(value).all()
    for name in ("denoising", "output"):
        assert torch.isfinite(losses.load(name).loss(inputs)).all()


def test_features_sum_raw_and_average_relative():
    ours, theirs = torch.ones(2, 4, 2, 2), torch.full((2, 4, 2, 2), 3.0)
    raw = loss_inputs(maps=((ours, theirs), (2 * ours, theirs)))
    torch.testing.assert_close(features.loss(raw), torch.full((2,), 4.0 + 1.0))
    torch.testing.assert_close(features.loss(replace(raw, normalise=True)), torch.full((2,), (4 / 9 + 1 / 9) / 2))


def test_reductions_are_in_fp32():
    """65,504 is fp16's largest number: the square of 1,000 would not fit."""
    far = torch.full((1, 4, 8, 8), 1000.0, dtype=torch.float16)
    assert losses.squared_distance(far, torch.zeros_like(far), False).item() == 1e6


def test_the_adapter_finds_the_matrix_that_made_the_pictures():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 4, 8, 8, generator=generator)
    matrix = torch.randn(3, 5, generator=generator)
    images = perceptual.to_rgb(latents, matrix).repeat_interleave(8, 2).repeat_interleave(8, 3)
    torch.testing.assert_close(perceptual.fit_adapter(latents, images), matrix, rtol=1e-3, atol=1e-3)


def test_the_perceptual_term_is_nothing_for_twins_and_teaches_the_student_alone():
    network = perceptual.LatentVgg(Vgg.load(), torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
    one = loss_inputs(normalise=True, network=network)
    twin = replace(one, prediction=one.teacher_prediction)
    assert perceptual.loss(twin).abs().max() < 1e-6
    leaf = one.prediction.clone().requires_grad_()
    theirs = one.teacher_prediction.clone().requires_grad_()
    perceptual.loss(replace(one, prediction=leaf, teacher_prediction=theirs)).sum().backward()
    assert leaf.grad.abs().sum() > 0
    assert theirs.grad is None
    assert all(p.grad is None for p in network.vgg.parameters())


def test_the_perceptual_term_to_the_letter_sees_predictions_and_counts_noise_in_full():
    network = perceptual.LatentVgg(Vgg.load(), torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
    one = loss_inputs(normalise=True, network=network)
    expected = perceptual.distance(one, one.prediction, one.teacher_prediction)
    torch.testing.assert_close(perceptual_prediction.loss(one), expected)
    noisier = replace(one, alpha=one.alpha / 100)
    torch.testing.assert_close(perceptual_prediction.loss(noisier), expected)
    assert (perceptual.loss(noisier) < perceptual.loss(one) / 10).all()


# ---------------------------------------------------------------------------------------------- the task


def arguments(batch: int = 2):
    generator = torch.Generator().manual_seed(5)
    noisy, target = (torch.randn(batch, 4, 16, 16, generator=generator) for _ in range(2))
    return (
        noisy,
        torch.tensor([7, 500])[:batch],
        torch.randn(batch, 7, 32, generator=generator),
        target,
        torch.full((batch,), 0.5),
    )


def test_the_whole_teacher_as_its_own_student_has_nothing_to_learn(tiny_unet):
    """Every term but denoising is exactly 0, in both modes: places, skips and consumers all meet their own."""
    student, applied = students.build(tiny_unet, PruningPlan(family="tiny", edits=()))
    student.requires_grad_(False)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name.startswith(("down_blocks.0", "up_blocks.3")))
    places = losses.find_places(MAPS, student, applied.name_map)
    whole = Objective(("denoising", "output", "features", "self_attention", "mid_block"), places, "epsilon")
    terms = DistillationTask(student, tiny_unet, applied, whole)(*arguments())
    assert all(term.shape == (2,) for term in terms.values())
    assert {name for name, term in terms.items() if (term != 0).any()} == {"denoising"}
    block = Objective(("denoising", "output", "blocks"), places, "epsilon", "blockwise")
    again = DistillationTask(student, tiny_unet, applied, block)(*arguments())
    assert again["blocks"].tolist() == again["output"].tolist() == [0, 0]
    assert torch.equal(again["denoising"], terms["denoising"])


def combined(teacher):
    first, _ = student_of(copy.deepcopy(teacher), "bk_sdm_base")
    plan = students.read_plan("a_sdm_clme", teacher, "tiny").plan
    grafts = tuple(GraftBlock(block=block) for block in ("down_blocks.0", "up_blocks.3"))
    return graft.assemble(teacher, first, plan.model_copy(update={"edits": (*plan.edits, *grafts)}))


def test_blockwise_teaches_every_parameter_without_crossing_the_trunk(tiny_unet):
    student, applied = combined(tiny_unet)
    ran = []
    handle = student.mid_block.register_forward_hook(lambda *_: ran.append(1))
    objective = Objective(("denoising", "output", "blocks"), {}, "epsilon", "blockwise")
    terms = DistillationTask(student, tiny_unet, applied, objective)(*arguments())
    sum(term.mean() for term in terms.values()).backward()
    handle.remove()
    assert ran == []
    without = [name for name, p in student.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(p.grad is None for p in student.parameters() if not p.requires_grad)
    assert all(p.grad is None for p in tiny_unet.parameters())


def test_blockwise_skips_go_to_the_consumers_they_were_made_for(tiny_unet):
    """A layer went from either side: what is left of `down_blocks.0` stands for its last layer, and feeds resnets.0."""
    student, applied = combined(tiny_unet)
    objective = Objective(("blocks",), {}, "epsilon", "blockwise")
    blocks = DistillationTask(student, tiny_unet, applied, objective)._blockwise
    assert blocks.skips["down_blocks.0.layer.0"] == "down_blocks.0.layer.1"
    assert blocks.skips["conv_in"] == "conv_in"
    assert blocks.consumers["up_blocks.3"] == [0, 2]


def test_gradients_with_checkpointing_are_the_same(tiny_unet):
    def gradients(checkpointing: bool):
        student, applied = combined(tiny_unet)
        if checkpointing:
            student.enable_gradient_checkpointing()
        places = losses.find_places(MAPS, student, applied.name_map)
        objective = Objective(("output", "self_attention", "mid_block"), places, "epsilon")
        terms = DistillationTask(student.train(), tiny_unet, applied, objective)(*arguments())
        sum(term.mean() for term in terms.values()).backward()
        return {name: p.grad for name, p in student.named_parameters() if p.grad is not None}

    plain, saved = gradients(False), gradients(True)
    assert plain.keys() == saved.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(saved[name], gradient, rtol=1e-4, atol=1e-6)


def test_what_the_backward_needs_is_counted_on_the_meta_device():
    """Conv → square: the convolution keeps its input, the square its own; weights are not counted."""
    net = nn.Conv2d(2, 3, 1, bias=False, device="meta")
    x = torch.empty(1, 2, 8, 8, device="meta")
    assert saved_bytes(lambda: net(x).square(), net) == 4 * 64 * (2 + 3)
    net.requires_grad_(False)
    assert saved_bytes(lambda: net(x).square(), net) == 0


def test_a_frozen_trunk_keeps_less_for_the_backward_and_blockwise_least():
    teacher = make_unet()

    def kept(student, applied, mode="end_to_end", terms=("output",)):
        objective = Objective(terms, losses.find_places(MAPS, student, applied.name_map), "epsilon", mode)
        one = DistillationTask(student, teacher, applied, objective)
        return saved_bytes(lambda: one(*arguments()), student)

    everything, applied = student_of(teacher, "a_sdm_clme")
    frozen, same = combined(teacher)
    assert (
        kept(frozen, same, "blockwise", ("blocks",))
        < kept(frozen, same)
        < kept(everything.requires_grad_(True), applied)
    )


def test_first_tensor_looks_into_tuples():
    x = torch.zeros(1)
    assert hooks.first_tensor(((x, 1), 2)) is x


def test_calls_keep_their_arguments(tiny_unet):
    with torch.no_grad(), captured_calls(tiny_unet, ["up_blocks.3"]) as calls:
        tiny_unet(**unet_args())
    assert len(calls["up_blocks.3"].kwargs["res_hidden_states_tuple"]) == 3
