"""Single files: the names are diffusers' own mapping inverted, and what we say of other programs is what they do."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import single_file_model, single_file_utils
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from asdm.models import checkpoints, export as exporter, ldm_names, loaders, single_file, student as students
from asdm.models.checkpoints import ZERO_TERMINAL_SNR, Header
from asdm.models.components import components_of
from asdm.models.families import load_family
from asdm.models.loading import load_unet, materialise, meta_unet
from asdm.models.settings import Setup
from asdm.plan.edits import PruningPlan, RemoveBlock, RemoveLayer, RemoveUnit, ReplaceUnit
from asdm.plan.presets import PRESETS
from asdm.unet import blocks
from asdm.unet.replacements import shared_copy
from asdm.unet.surgery import apply_plan
from tests.asdm.models import detectors
from tests.tiny import TINY_WHOLE, make_unet, run

MINI = load_family("mini")
FAMILIES = ("sd15", "sd21_base", "sdxl")


def layers(*pairs: tuple[str, int]) -> tuple[RemoveLayer, ...]:
    return tuple(RemoveLayer(block=block, layer=layer) for block, layer in pairs)


def units(*names: str) -> tuple[RemoveUnit, ...]:
    return tuple(RemoveUnit(unit=name) for name in names)


TINY = (
    *layers(*((f"down_blocks.{i}", 1) for i in range(3)), *((f"up_blocks.{i}", 1) for i in (1, 2, 3))),
    RemoveBlock(block="mid_block"), RemoveBlock(block="down_blocks.3"),
)  # fmt: skip
# By family: plans that each meet another rule of some program.
PLANS: dict[str, list[tuple[Any, ...]]] = {
    "sd15": [
        (),
        units("down_blocks.0.attentions.0", "up_blocks.2.attentions.1"),
        units(*(f"down_blocks.{i}.attentions.{j}" for i in range(3) for j in (0, 1))),
        units("mid_block.attentions.0"),
        units("mid_block.attentions.0", "mid_block.resnets.0"),
        units("mid_block.resnets.1"),
        units("down_blocks.1.resnets.1", "down_blocks.0.resnets.0", "down_blocks.0.attentions.0"),
        (RemoveBlock(block="mid_block"), *layers(("down_blocks.1", 1), ("up_blocks.2", 1))),
        (*TINY, *units("down_blocks.0.attentions.0", "up_blocks.3.attentions.0", "up_blocks.3.attentions.2")),
        (*TINY, *units("down_blocks.0.attentions.0")),
        (ReplaceUnit(unit="up_blocks.3.attentions.0", with_="kv_downsample"),),
    ],
    "sd21_base": [TINY, units("up_blocks.3.attentions.2")],
    "sdxl": [
        (),
        units("up_blocks.0.attentions.1"),
        units("mid_block.attentions.0"),
        units("down_blocks.2.attentions.1"),
        units("mid_block.attentions.0", "mid_block.resnets.1"),
        layers(("down_blocks.1", 1), ("up_blocks.1", 1)),
    ],
}


@pytest.fixture(scope="module")
def teachers() -> dict[str, Any]:
    return {name: meta_unet(load_family(name)) for name in FAMILIES}


# ---------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("family", ["mini", *FAMILIES])
def test_diffusers_converts_our_names_back(family: str, teachers: dict[str, Any]) -> None:
    """Every tensor comes back under its own name, of the teachers and of the students that diffusers can convert."""
    teacher = teachers.get(family) or meta_unet(MINI)
    presets = {"mini": ["bk_sdm_base"], "sd15": ["bk_sdm_tiny"]}.get(family, [])
    small = [students.build(teacher, students.read_plan(preset, teacher, family))[0] for preset in presets]
    for unet in (teacher, *small):
        names, tensors = ldm_names.unet_names(unet), unet.state_dict()
        file = {ldm_names.UNET_PREFIX + names[name]: tensor for name, tensor in tensors.items()}
        back = single_file_utils.convert_ldm_unet_checkpoint(file, dict(unet.config))
        assert back.keys() == tensors.keys()
        assert all(back[name] is tensors[name] for name in tensors)
    assert ldm_names.unet_names(teacher) == ldm_names.unet_names(teacher, "sdcpp")


def test_a_tiny_student_has_stable_diffusion_cpps_holes(teachers: dict[str, Any]) -> None:
    student, _ = students.build(teachers["sd15"], PruningPlan(family="sd15", edits=TINY))
    shapes = detectors.shapes_of(student, "sdcpp")
    places = {name.split(".")[1] + name.split(".")[0][0] for name in shapes if "put_bl" in name}
    assert places == {*(f"{i}i" for i in (0, 1, 3, 4, 6, 7)), *(f"{i}o" for i in (0, 1, 2, 3, 4, 5, 6, 7))}
    upsamplers = [name for name in shapes if name.endswith("conv.weight")]
    assert upsamplers == ["output_blocks.2.1.conv.weight", "output_blocks.5.2.conv.weight"]


def test_a_tensor_without_a_name_is_refused() -> None:
    unet = make_unet(time_cond_proj_dim=8)
    with pytest.raises(ValueError, match=r"time_embedding\.cond_proj\.weight has no name in LDM's checkpoints"):
        ldm_names.unet_names(unet)
    with pytest.raises(ValueError, match=r"room for 2 layers in down_blocks\.0, got 3"):
        ldm_names.unet_names(meta_unet(replace(MINI, unet=MINI.unet | {"layers_per_block": 3})), "sdcpp")


def test_vae_and_text_encoders_come_back() -> None:
    vae = materialise(AutoencoderKL.from_config(TINY_WHOLE.vae)).state_dict()
    file = ldm_names.checkpoint({}, vae)
    back = single_file_utils.convert_ldm_vae_checkpoint(file, TINY_WHOLE.vae)
    assert back.keys() == vae.keys()
    assert all(torch.equal(back[name], vae[name]) for name in vae)
    big = TINY_WHOLE.text_encoders[0] | {
        "hidden_act": "gelu", "projection_dim": 32, "architectures": ["CLIPTextModelWithProjection"]
    }  # fmt: skip
    whole = replace(TINY_WHOLE, text_encoders=(TINY_WHOLE.text_encoders[0], big))
    small, large = (materialise(part.module, seed=2) for part in components_of(whole)[:2])
    texts = [(config, part.state_dict()) for config, part in zip(whole.text_encoders, (small, large), strict=True)]
    file = ldm_names.checkpoint({}, None, texts)
    kinds = {name.rpartition(".transformer.")[0].rpartition(".model")[0] or name for name in file}
    assert any("conditioner.embedders.0.transformer.text_model.embeddings" in name for name in kinds | file.keys())
    back = single_file_utils.convert_open_clip_checkpoint(large, file, "conditioner.embedders.1.model.")
    expected = {ldm_names._with_text_model(name): tensor for name, tensor in large.state_dict().items()}
    assert expected.keys() == back.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in expected.items())


# ---------------------------------------------------------------------------------------------- claims


@pytest.mark.parametrize("family", FAMILIES)
def test_claims_are_what_the_programs_do(family: str, teachers: dict[str, Any]) -> None:
    """For every preset and every planned student: loads, refuses or runs wrongly, in both of LDM's layouts."""
    teacher = teachers[family]
    widths = {name: int(load_family(name).unet["cross_attention_dim"]) for name in teachers}
    stock = {widths[name]: detectors.shapes_of(unet) for name, unet in teachers.items()}
    plans = [PruningPlan(family=family, edits=edits) for edits in PLANS[family]]
    for preset in PRESETS.values() if family == "sd15" else ():
        plans.append(PruningPlan(family=family, edits=preset(blocks.topology(teacher))))
    seen = set()
    for plan in plans:
        resolved = students.resolved_on(teacher, plan)
        shape, config = loaders.structure_of(load_family(family).unet, resolved), {}
        if shape.plain:
            student, _ = students.build(teacher, resolved)
            config = dict(student.config)
            alone = replace(load_family(family), unet=config, folder=None)
            assert students.structure(alone) == replace(shape, whole=True)  # its config by itself tells as much
        else:
            apply_plan(student := shared_copy(teacher), resolved)
        for layout in ("comfyui", "sdcpp"):
            claims = {claim.program: claim.verdict for claim in loaders.claims(shape, layout)}
            if "cond_conv" in shape.replaced:  # experts have no name in LDM's files
                assert "loads" not in claims.values()
                continue
            known = config if shape.plain and layout == "comfyui" else None
            expected = detectors.verdicts(detectors.shapes_of(student, layout), family, stock, known)
            if shape.replaced:  # the names are the teacher's, the modules are not
                expected = {name: verdict.replace("loads", "wrong") for name, verdict in expected.items()}
            assert expected.items() <= claims.items(), (layout, [str(edit) for edit in plan.edits])
            seen |= set(claims.items())
    assert {(p, v) for p in ("ComfyUI", "diffusers") for v in ("loads", "refuses")} <= seen or family == "sd21_base"
    assert ("ComfyUI", "wrong") in seen


@pytest.mark.parametrize(
    ("edits", "verdict"),
    [
        (units("up_blocks.3.attentions.1"), "refuses"),
        ((ReplaceUnit(unit="up_blocks.3.attentions.1", with_="kv_downsample"),), "wrong"),
        (layers(("down_blocks.0", 1), ("up_blocks.3", 1)), "refuses"),
    ],
)
def test_diffusers_does_what_we_say(tiny_unet: Any, tmp_path: Path, edits: tuple[Any, ...], verdict: str) -> None:
    """`from_single_file` on students that it does not load: an error, or the teacher's modules without a word."""
    plan = PruningPlan(family="tiny", edits=edits)
    shape = loaders.structure_of(dict(tiny_unet.config), students.resolved_on(tiny_unet, plan))
    assert {claim.program: claim.verdict for claim in loaders.claims(shape)}["diffusers"] == verdict
    student, _ = students.build(tiny_unet, plan)
    student.save_pretrained(tmp_path / "student")
    single_file.write(tmp_path / "x.safetensors", single_file.tensors_of(student, "comfyui"), {"format": "pt"})
    load = partial(UNet2DConditionModel.from_single_file, tmp_path / "x.safetensors", config=str(tmp_path / "student"))
    if verdict == "wrong":
        assert not torch.equal(run(load()), run(student))
    else:
        with pytest.raises((TypeError, NotImplementedError, ValueError, single_file_utils.SingleFileComponentError)):
            load()


def test_sd2_with_v_prediction_is_sampled_as_epsilon_where_comfyui_cannot_tell(teachers: dict[str, Any]) -> None:
    whole, tiny = (
        loaders.structure_of(load_family("sd21").unet, students.resolved_on(teachers["sd21_base"], edits))
        for edits in ((), TINY)
    )
    by_teacher, by_student = (loaders.claims(s, "comfyui", "v_prediction")[0] for s in (whole, tiny))
    assert by_teacher.why == "as SD 2"
    assert "add ModelSamplingDiscrete" in by_student.why


# ---------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini's BK-Tiny on disk."""
    from asdm.models.build import build_student

    folder = tmp_path_factory.mktemp("students") / "tiny"
    build_student("bk_sdm_tiny", "mini", folder)
    return folder


def metadata_of(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


def test_the_mini_as_a_single_file_draws_the_same_picture(tmp_path: Path) -> None:
    file = tmp_path / "mini.safetensors"
    result = exporter.export("mini", "single_file", file)
    assert [claim.program for claim in result.loaders if claim.verdict == "loads"] == ["diffusers"]
    pipes = (
        StableDiffusionPipeline.from_single_file(file, config=str(MINI.folder)),
        DiffusionPipeline.from_pretrained(MINI.folder, torch_dtype=torch.float32),
    )
    options = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np"}
    one, two = (pipe("a red heart", generator=torch.Generator().manual_seed(0), **options).images for pipe in pipes)
    assert np.array_equal(one, two)


@pytest.mark.parametrize("layout", ["comfyui", "diffusers_unet"])
def test_a_student_as_a_single_file_loads_in_diffusers(tiny_student: Path, tmp_path: Path, layout: str) -> None:
    if layout == "diffusers_unet" and not hasattr(single_file_model, "_should_convert_state_dict_to_diffusers"):
        pytest.skip("this version of diffusers does not read its own names from a single file")
    file = tmp_path / "student.safetensors"
    result = exporter.export(str(tiny_student), "single_file", file, layout=layout)
    assert {claim.program: claim.verdict for claim in result.loaders}["diffusers"] == "loads"
    loaded = UNet2DConditionModel.from_single_file(file, config=str(tiny_student)).state_dict()
    expected = load_file(tiny_student / "diffusion_pytorch_model.safetensors")
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    names = load_file(file).keys()
    assert any(name.startswith("first_stage_model.") for name in names) == (layout == "comfyui")


def test_a_files_own_parts_go_into_what_is_made_of_it(tmp_path: Path) -> None:
    """A fine-tuned checkpoint beside the folder that tells its configs."""
    folder = shutil.copytree(MINI.folder, tmp_path / "folder")
    weights = folder / "text_encoder" / "model.safetensors"
    tuned = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in load_file(weights).items()}
    save_file(tuned, weights)
    exporter.export(str(folder), "single_file", tmp_path / "tuned.safetensors")
    for teacher, setup in (("mini", Setup(weights=str(tmp_path / "tuned.safetensors"))),
                           (str(tmp_path / "tuned.safetensors"), Setup(config=str(MINI.folder)))):  # fmt: skip
        exporter.export(teacher, "single_file", tmp_path / "again.safetensors", setup, force=True)
        one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("tuned", "again"))
        assert one.keys() == two.keys()
        assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_marks_of_a_kind_are_no_weights_of_a_unet(tmp_path: Path) -> None:
    header = Header(dict.fromkeys(("conv_in.weight", "v_pred", "ztsnr"), (2,)), {})
    assert [name for name in header.shapes if checkpoints.is_unet_key(header)(name)] == ["conv_in.weight"]


def test_metadata_says_where_a_file_comes_from(tiny_student: Path, tmp_path: Path) -> None:
    file = tmp_path / "student.safetensors"
    result = exporter.export(str(tiny_student), "single_file", file, Setup(dtype="fp16"), pipeline="none")
    facts = metadata_of(file)
    assert facts["asdm.source_sha256"] == result.source_sha256
    assert (facts["asdm.base_model"], facts["asdm.license"], facts["asdm.plan"]) == (
        "mini", "cc-by-sa-4.0", "bk_sdm_tiny"
    )  # fmt: skip
    assert json.loads(facts["asdm.unet_config"])["layers_per_block"] == 1
    assert not load_family(str(file)).zero_terminal_snr
    unet = load_unet(MINI, str(MINI.folder))
    pure = single_file.metadata(replace(MINI, zero_terminal_snr=True), unet, "comfyui", "SD1", {})
    save_file(load_file(file), tmp_path / "pure.safetensors", facts | {ZERO_TERMINAL_SNR: pure[ZERO_TERMINAL_SNR]})
    assert load_family(str(tmp_path / "pure.safetensors")).zero_terminal_snr
    assert json.loads(facts["asdm.lora_names"])["up_blocks.1.resnets.2"] == "up_blocks.0.resnets.1"
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}


def test_a_student_that_would_run_wrongly_is_written_under_names_of_our_own(tmp_path: Path) -> None:
    unet, _ = students.build(make_unet(), [ReplaceUnit(unit="down_blocks.0.attentions.0", with_="gri_attention")])
    unet.save_pretrained(tmp_path / "gri", safe_serialization=True)
    file = tmp_path / "gri.safetensors"
    with pytest.raises(ValueError, match=r"diffusers would run it wrongly: it would run plain modules .* --force"):
        exporter.export(str(tmp_path / "gri"), "single_file", file)
    assert not file.exists()
    result = exporter.export(str(tmp_path / "gri"), "single_file", file, force=True)
    assert (result.marked, result.layout, result.loaders) == (True, "asdm", ())
    assert all(name.startswith("asdm.unet.") for name in load_file(file))
    with pytest.raises((OSError, ValueError, single_file_utils.SingleFileComponentError)):
        UNet2DConditionModel.from_single_file(file, config=str(tmp_path / "gri"))
    assert "only asdm loads it" in exporter.describe(result, file)


@pytest.mark.parametrize(
    ("edits", "layout"),
    [
        (layers(("down_blocks.0", 1), ("up_blocks.3", 1)), "comfyui"),
        (layers(("down_blocks.0", 1), ("up_blocks.3", 1)), "sdcpp"),
        (units("up_blocks.3.attentions.1"), "comfyui"),
        ((ReplaceUnit(unit="down_blocks.0.attentions.0", with_="gri_attention"),), "comfyui"),
    ],
)
def test_a_students_file_is_read_again(tmp_path: Path, edits: tuple[Any, ...], layout: str) -> None:
    """Names that diffusers' converter does not know, and those of our own."""
    unet, _ = students.build(make_unet(), PruningPlan(family="tiny", edits=edits))
    unet.save_pretrained(tmp_path / "student", safe_serialization=True)
    file = tmp_path / "student.safetensors"
    exporter.export(str(tmp_path / "student"), "single_file", file, force=True, layout=layout)
    again = load_unet(load_family(str(file)), str(file))
    assert type(again) is type(unet)
    assert torch.equal(run(again), run(unet))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("vae/diffusion_pytorch_model.safetensors", None, "diffusion_pytorch_model.safetensors is not a safetensors"),
        ("vae/diffusion_pytorch_model.safetensors", "NaN", "vae: encoder.conv_in.bias holds NaN or infinite numbers"),
        ("text_encoder/config.json", b"[]", "a text encoder's config is no JSON object"),
    ],
)
def test_damaged_parts_of_a_pipeline_are_refused_by_name(
    tmp_path: Path, tiny_pipeline: Path, file: str, content: Any, words: str
) -> None:
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "parts"))
    raw = (folder / file).read_bytes()
    if content == "NaN":
        tensors = load_file(folder / file)
        tensors["encoder.conv_in.bias"][0] = float("nan")
        save_file(tensors, folder / file)
    else:
        (folder / file).write_bytes(raw[:-50] if content is None else content)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        exporter.export("mini", "single_file", tmp_path / "mini.safetensors", pipeline=str(folder))
    assert str(folder) in str(caught.value)
    assert not (tmp_path / "mini.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layout": "flat"}, "unknown layout 'flat'; choose from comfyui, sdcpp, diffusers_unet"),
        ({"output": "mini.ckpt"}, "must end in .safetensors, got"),
        ({"pipeline": "nowhere"}, "nowhere is not a diffusers pipeline's folder"),
    ],
)
def test_a_wrong_option_gets_one_sentence(tmp_path: Path, options: dict[str, str], words: str) -> None:
    output = tmp_path / options.pop("output", "mini.safetensors")
    with pytest.raises(ValueError, match=words):
        exporter.export("mini", "single_file", output, **options)
    assert list(tmp_path.iterdir()) == []
