"""Students: presets, shared weights, and folders that load elsewhere."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

import asdm
from asdm.mini import PIPELINE
from asdm.models import build, export as exporter, student as students
from asdm.models.families import load_family
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.plan import legality, presets
from asdm.plan.edits import PruningPlan, RemoveBlock, RemoveLayer, RemoveUnit, ReplaceUnit
from asdm.records.build import BuildResult
from asdm.unet import blocks
from asdm.unet.replacements.cond_conv import fold
from asdm.unet.surgery import apply_plan, resolved_on
from tests.asdm.unet.test_surgery import teacher_name
from tests.tiny import TINY_TEXT_ENCODER, TINY_WHOLE, hooks_on, make_unet, run

GRI = ReplaceUnit(unit="down_blocks.0.attentions.0", with_="gri_attention")
GRI_ABOVE = ReplaceUnit(unit="up_blocks.3.attentions.2", with_="gri_attention")
SHALLOW_PAIR = (RemoveLayer(block="down_blocks.0", layer=0), RemoveLayer(block="up_blocks.3", layer=1))


def plan_of(*edits) -> PruningPlan:
    return PruningPlan(family="tiny", edits=edits)


def preset(name: str, unet) -> PruningPlan:
    return students.read_plan(name, unet, "tiny").plan


def params(module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bk_sdm_base", 579_384_964),
        ("bk_sdm_small", 482_346_884),
        ("bk_sdm_tiny", 323_384_964),
        # SD1.5 minus a layer of down_blocks.0 (ResNet, Transformer) and one of up_blocks.3, whose ResNet is wider.
        ("a_sdm", 848_791_044),
        # and the foreign kernels: six of 320·320·9, one of 640·320·9; and a gate for each of five convolutions.
        (
            "a_sdm_clme",
            848_791_044 + 6 * 921_600 + 1_843_200 + 2 * 321 * 2 + 321 * 3 + 641 * 2 + 321 * 3,
        ),
    ],
)
def test_a_preset_of_sd15_has_the_published_number_of_parameters(sd15_meta, name, expected):
    student, _ = students.build(sd15_meta, preset(name, sd15_meta))
    assert params(sd15_meta) == 859_520_964
    assert params(student) == expected


def test_a_sdm_is_a_layer_less_in_the_shallow_pair_and_gri_on_what_is_left_there(sd15_meta):
    _, applied = students.build(sd15_meta, preset("a_sdm", sd15_meta))
    assert applied.removed == (
        "down_blocks.0.resnets.1", "down_blocks.0.attentions.1", "up_blocks.3.resnets.1", "up_blocks.3.attentions.1",
    )  # fmt: skip
    left = ("down_blocks.0.attentions.0", "up_blocks.3.attentions.0", "up_blocks.3.attentions.2")
    assert applied.replaced == dict.fromkeys(left, "gri_attention")


def test_bk_sdm_takes_a_layer_from_every_block_then_the_middle_then_the_deepest_pair(tiny_unet):
    counts = {}
    for name in ("bk_sdm_base", "bk_sdm_small", "bk_sdm_tiny"):
        student, _ = students.build(tiny_unet, preset(name, tiny_unet))
        counts[name] = len(list(blocks.iter_units(student)))
    base = 38 - 2 * (4 + 3)  # a ResNet at four levels and a Transformer at three, down and up
    assert counts == {"bk_sdm_base": base, "bk_sdm_small": base - 3, "bk_sdm_tiny": base - 3 - 1 - 2}


def test_every_preset_builds_a_student_that_runs(tiny_unet):
    for name in presets.PRESETS:
        student, _ = students.build(tiny_unet, preset(name, tiny_unet))
        out = run(student, batch=2)
        assert out.shape == (2, 4, 16, 16)
        assert out.isfinite().all()


def test_a_preset_that_does_not_fit_says_so():
    small = make_unet(layers_per_block=1)
    with pytest.raises(ValueError, match=r"^the preset bk_sdm_base does not fit tiny: "):
        preset("bk_sdm_base", small)


# ---------------------------------------------------------------------------------------------- build


@pytest.mark.parametrize("name", ["a_sdm", "bk_sdm_tiny"])
def test_building_leaves_the_teacher_as_it_was(tiny_unet, name):
    before, modules, hooks = run(tiny_unet), {*map(id, tiny_unet.modules())}, hooks_on(tiny_unet)
    where = {key: tensor.data_ptr() for key, tensor in tiny_unet.state_dict().items()}
    config = dict(tiny_unet.config)
    students.build(tiny_unet, preset(name, tiny_unet))
    assert {*map(id, tiny_unet.modules())} == modules
    assert hooks_on(tiny_unet) == hooks
    assert {key: tensor.data_ptr() for key, tensor in tiny_unet.state_dict().items()} == where
    assert dict(tiny_unet.config) == config
    assert torch.equal(run(tiny_unet), before)


@pytest.mark.parametrize("name", ["a_sdm", "bk_sdm_tiny"])
def test_a_student_shares_every_weight_with_its_teacher(tiny_unet, name):
    student, applied = students.build(tiny_unet, preset(name, tiny_unet))
    theirs = {key: tensor.data_ptr() for key, tensor in tiny_unet.state_dict().items()}
    for key, tensor in student.state_dict().items():
        assert tensor.data_ptr() == theirs[teacher_name(key, applied.name_map)], key


@pytest.mark.parametrize(
    "edits",
    [
        SHALLOW_PAIR,
        (*SHALLOW_PAIR, ReplaceUnit(unit="down_blocks.0.attentions.1", with_="gri_attention")),
        (RemoveUnit(unit="mid_block.resnets.0"),),
    ],
    ids=["layers", "layers and gri", "identity"],
)
def test_the_student_computes_what_the_operated_teacher_computes(tiny_unet, edits):
    student, _ = students.build(tiny_unet, plan_of(*edits))
    assert not torch.equal(run(student), run(tiny_unet))
    apply_plan(tiny_unet, resolved_on(tiny_unet, edits))
    assert torch.equal(run(student), run(tiny_unet))


@pytest.mark.parametrize(
    ("edits", "kind"),
    [
        (SHALLOW_PAIR, UNet2DConditionModel),
        ((RemoveBlock(block="mid_block"), RemoveBlock(block="down_blocks.3")), UNet2DConditionModel),
        ((), UNet2DConditionModel),
        ((GRI,), students.StudentUNet),
        ((RemoveUnit(unit="mid_block.attentions.0"),), students.StudentUNet),
    ],
)
def test_removal_of_layers_and_blocks_alone_makes_a_plain_diffusers_unet(tiny_unet, edits, kind):
    student, _ = students.build(tiny_unet, plan_of(*edits))
    assert type(student) is kind
    assert not student.training


def test_a_plain_student_may_be_the_next_teacher(tiny_unet):
    first, _ = students.build(tiny_unet, plan_of(*SHALLOW_PAIR))
    second, applied = students.build(
        first, preset("bk_sdm_small", tiny_unet).model_copy(update={"edits": (RemoveBlock(block="mid_block"),)})
    )
    assert len(list(blocks.iter_units(second))) == 38 - 4 - 3
    assert applied.removed == ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")
    assert run(second).shape == (1, 4, 16, 16)


# ---------------------------------------------------------------------------------------------- files


def result_of(unet, student, plan, applied) -> BuildResult:
    return BuildResult(
        name=plan.name, family="tiny", weights="random", params=params(student), macs=0, teacher_params=params(unet),
        teacher_macs=0, removed=applied.removed, replaced=applied.replaced, name_map=applied.name_map,
        plain_diffusers=type(student) is UNet2DConditionModel, plan_sha256=plan.sha256(),
    )  # fmt: skip


def build_and_save(unet, plan, folder, force=False):
    student, applied = students.build(unet, plan)
    students.save(student, plan, result_of(unet, student, plan, applied), folder, force)
    return student


@pytest.mark.parametrize("extra", [(), SHALLOW_PAIR], ids=["gri", "gri and layers"])
def test_a_student_with_gri_reloads_bit_by_bit(tiny_unet, tmp_path, extra):
    plan = plan_of(*extra, GRI.model_copy(update={"unit": "up_blocks.3.attentions.2"}))
    student = build_and_save(tiny_unet, plan, tmp_path / "student")
    again = asdm.StudentUNet.from_pretrained(tmp_path / "student").eval()
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in student.state_dict().items())
    assert again.state_dict().keys() == student.state_dict().keys()
    # Safetensors maps its file at odd addresses, where the CPU takes other kernels; a copy lies as all tensors do.
    assert torch.equal(run(copy.deepcopy(again)), run(student))
    assert not torch.equal(run(again), run(tiny_unet))
    assert again.config.edits == [edit.model_dump(mode="json", by_alias=True) for edit in plan.edits]


def test_a_student_is_found_by_the_name_that_diffusers_reads(tmp_path, tiny_unet):
    build_and_save(tiny_unet, plan_of(GRI), tmp_path / "student")
    config = json.loads((tmp_path / "student/config.json").read_text())
    assert getattr(asdm, config["_class_name"]) is students.StudentUNet
    with pytest.raises(AttributeError, match="StudentNet"):
        _ = asdm.StudentNet


def test_a_student_folder_holds_its_plan_and_no_pickle(tiny_unet, tmp_path):
    plan = plan_of(GRI)
    build_and_save(tiny_unet, plan, tmp_path / "new" / "student")
    files = {path.name for path in (tmp_path / "new" / "student").iterdir()}
    assert files == {"config.json", "diffusion_pytorch_model.safetensors", "plan.json", "build.json"}
    assert PruningPlan.load(tmp_path / "new/student/plan.json") == plan
    assert BuildResult.load(tmp_path / "new/student/build.json").plan_sha256 == plan.sha256()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["student"]


def test_a_failure_while_saving_leaves_nothing(tiny_unet, tmp_path, monkeypatch):
    def full_disk(self, folder, **_):
        (folder / "half.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(UNet2DConditionModel, "save_pretrained", full_disk)
    with pytest.raises((OSError, ValueError), match=r"(?i)no space left"):
        build_and_save(tiny_unet, plan_of(GRI), tmp_path / "student")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_saving_over_an_old_student_keeps_the_old_one(tiny_unet, tmp_path, monkeypatch):
    build_and_save(tiny_unet, plan_of(GRI), tmp_path / "student")
    before = (tmp_path / "student/diffusion_pytorch_model.safetensors").read_bytes()

    def broken(self):
        raise RuntimeError("the last file")

    monkeypatch.setattr(PruningPlan, "to_json", broken)
    with pytest.raises(RuntimeError, match="the last file"):
        build_and_save(tiny_unet, plan_of(), tmp_path / "student", force=True)
    assert (tmp_path / "student/diffusion_pytorch_model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_an_existing_folder_is_refused_unless_forced(tiny_unet, tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student/mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"student exists.*--force"):
        build_and_save(tiny_unet, plan_of(GRI), tmp_path / "student")
    assert (tmp_path / "student/mine.txt").read_text() == "mine"
    build_and_save(tiny_unet, plan_of(GRI), tmp_path / "student", force=True)
    assert not (tmp_path / "student/mine.txt").exists()
    assert (tmp_path / "student/config.json").exists()


# ---------------------------------------------------------------------------------------------- reading plans


def test_a_preset_becomes_a_plan_that_knows_its_teacher(tiny_unet, sd15_meta):
    plan = preset("bk_sdm_base", tiny_unet)
    assert (plan.name, plan.family, len(plan.edits)) == ("bk_sdm_base", "tiny", 2 * 4)
    assert plan.teacher_config_sha256 == preset("a_sdm", tiny_unet).teacher_config_sha256
    assert plan.teacher_config_sha256 != preset("bk_sdm_base", sd15_meta).teacher_config_sha256


def test_a_plan_file_is_read_for_its_own_teacher_and_refused_for_another(tiny_unet, sd15_meta, tmp_path):
    plan = preset("bk_sdm_base", tiny_unet)
    path = plan.save(tmp_path / "plan.json")
    assert students.read_plan(str(path), tiny_unet, "tiny").plan == plan
    with pytest.raises(ValueError, match=r"plan\.json was made for another teacher \(tiny, config .*than sd15"):
        students.read_plan(str(path), sd15_meta, "sd15")


def test_a_plan_by_hand_needs_no_hash_but_must_fit(tiny_unet, tmp_path):
    good = plan_of(*SHALLOW_PAIR).save(tmp_path / "good.json")
    assert students.read_plan(str(good), tiny_unet, "tiny").edits == SHALLOW_PAIR
    bad = plan_of(SHALLOW_PAIR[0]).save(tmp_path / "bad.json")
    with pytest.raises(ValueError, match=r"bad\.json: removing layer 0 of down_blocks\.0 needs its mirrored layer"):
        students.read_plan(str(bad), tiny_unet, "tiny")


def test_what_is_neither_a_preset_nor_a_file_is_told_the_presets(tiny_unet):
    with pytest.raises(
        ValueError, match=r"'bk_sdm' is neither.*a_sdm, a_sdm_clme, .*bk_sdm_base, bk_sdm_small, bk_sdm_tiny"
    ):
        students.read_plan("bk_sdm", tiny_unet, "tiny")


# ---------------------------------------------------------------------------------------------- the whole step


def test_build_student_from_folder_to_folder(tiny_folder, tmp_path):
    result = build.build_student("a_sdm", str(tiny_folder), tmp_path / "student")
    teacher = UNet2DConditionModel.from_pretrained(str(tiny_folder))
    student = asdm.StudentUNet.from_pretrained(tmp_path / "student").eval()
    assert result == BuildResult.load(tmp_path / "student/build.json")
    assert (result.teacher_params, result.params) == (params(teacher), params(student))
    assert result.macs < result.teacher_macs
    apply_plan(teacher.eval(), resolved_on(teacher, preset("a_sdm", teacher)))
    assert torch.equal(run(copy.deepcopy(student)), run(copy.deepcopy(teacher)))
    assert load_family(str(tmp_path / "student")).unet["_class_name"] == "StudentUNet"


def test_a_reloaded_student_gives_the_same_bits(tiny_unet, tmp_path):
    """safetensors maps weights to odd addresses, where CPU kernels round otherwise; loading mends that."""
    student, _ = students.build(tiny_unet, plan_of(GRI))
    student.save_pretrained(tmp_path / "student")
    loaded = students.StudentUNet.from_pretrained(tmp_path / "student").eval()
    assert all(parameter.data_ptr() % 64 == 0 for parameter in loaded.parameters())
    assert torch.equal(run(loaded), run(student))


def test_a_pipeline_with_a_student_comes_back_from_its_folder(tiny_unet, tmp_path):
    student, _ = students.build(tiny_unet, plan_of(GRI))
    pipeline(TINY_WHOLE, student, Setup()).save_pretrained(tmp_path / "pipeline", safe_serialization=True)
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    assert type(loaded.unet) is students.StudentUNet
    assert all(torch.equal(loaded.unet.state_dict()[key], tensor) for key, tensor in student.state_dict().items())
    loaded.set_progress_bar_config(disable=True)
    image = loaded("a cat", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (128, 128, 3)


def test_a_student_is_no_teacher(tiny_unet):
    student, _ = students.build(tiny_unet, plan_of(GRI))
    with pytest.raises(ValueError, match="a student with edits of its own; build from its teacher"):
        students.build(student, plan_of(*SHALLOW_PAIR))


@pytest.mark.parametrize(("edits", "checks"), [(SHALLOW_PAIR, 0), ((*SHALLOW_PAIR, GRI_ABOVE), 1)])
def test_a_plan_is_resolved_once_on_its_way_into_a_folder(edits, checks, tiny_folder, tmp_path, monkeypatch):
    """Saving a `StudentUNet` resolves once more: it checks that the config which is written loads."""
    path, resolved = plan_of(*edits).save(tmp_path / "plan.json"), []
    checked = legality._removed_blocks
    monkeypatch.setattr(legality, "_removed_blocks", lambda *args: resolved.append(args) or checked(*args))
    build.build_student(str(path), str(tiny_folder), tmp_path / "student")
    assert len(resolved) == 1 + checks


# ---------------------------------------------------------------------------------------------- loads everywhere

CLME = (
    *SHALLOW_PAIR,
    *(ReplaceUnit(unit=f"up_blocks.3.resnets.{i}", with_="cond_conv") for i in (0, 2)),
    ReplaceUnit(unit="up_blocks.3.attentions.0", with_="gri_attention"),
)
PLAIN = ("bk_sdm_base", "bk_sdm_small", "bk_sdm_tiny", "pair")
IN_A_FRESH_PROCESS = """
import json, sys
from pathlib import Path
from diffusers import DiffusionPipeline, UNet2DConditionModel
for name, sums in json.loads(Path("sums.json").read_text()).items():
    unet, info = UNet2DConditionModel.from_pretrained(name, output_loading_info=True)
    assert type(unet) is UNet2DConditionModel
    assert not any(info.values()), (name, info)
    assert [float(p.double().sum()) for p in unet.state_dict().values()] == sums, name
assert not [module for module in sys.modules if module.partition(".")[0] == "asdm"]
print("loaded", len(list(Path().glob("*/config.json"))))
import asdm
for folder in ("sd", "sdxl"):
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a cat", num_inference_steps=2, output_type="np", height=128, width=128).images[0]
    print(type(pipe).__name__, type(pipe.unet).__name__, image.shape, float(image.std()) > 0)
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder with plain students and two pipelines with one, and what a process says that loads them all."""
    folder, teacher = tmp_path_factory.mktemp("elsewhere"), make_unet()
    plans = {name: plan_of(*SHALLOW_PAIR) if name == "pair" else preset(name, teacher) for name in PLAIN}
    built = {name: build_and_save(teacher, plan, folder / name) for name, plan in plans.items()}
    sums = {name: [float(p.double().sum()) for p in unet.state_dict().values()] for name, unet in built.items()}
    (folder / "sums.json").write_text(json.dumps(sums))
    student, _ = students.build(teacher, plan_of(*CLME))
    pipeline(TINY_WHOLE, moved(student), Setup()).save_pretrained(folder / "sd")
    sdxl_pipeline(moved(sdxl_student())).save_pretrained(folder / "sdxl")
    done = subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout.splitlines()


def moved(student):
    """A student whose gates have left their start."""
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if ".routing." in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    return student


def test_pruned_students_load_with_plain_diffusers_where_asdm_was_never_imported(elsewhere):
    assert elsewhere[1][0] == "loaded 4"


def test_a_saved_pipeline_with_a_student_makes_an_image_in_a_fresh_process(elsewhere):
    folder, said = elsewhere
    assert said[1] == "StableDiffusionPipeline StudentUNet (128, 128, 3) True"
    index = json.loads((folder / "sd/model_index.json").read_text())
    assert index["unet"] == ["asdm", "StudentUNet"]


def test_a_saved_sdxl_pipeline_with_a_student_makes_an_image_in_a_fresh_process(elsewhere):
    assert elsewhere[1][2] == "StableDiffusionXLPipeline StudentUNet (128, 128, 3) True"


def sdxl_student():
    teacher = make_unet(
        block_out_channels=[32, 64, 64],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        transformer_layers_per_block=[1, 2, 3],
        attention_head_dim=[2, 4, 4],
        use_linear_projection=True,
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    edits = (
        RemoveLayer(block="down_blocks.1", layer=1),
        RemoveLayer(block="up_blocks.1", layer=1),
        ReplaceUnit(unit="up_blocks.1.resnets.2", with_="cond_conv", options={"gate": "timestep"}),
        ReplaceUnit(unit="up_blocks.1.attentions.0", with_="kv_downsample"),
    )
    return students.build(teacher, plan_of(*edits))[0]


def sdxl_pipeline(unet):
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from asdm.models.pipeline import byte_tokenizer

    text = CLIPTextConfig(**TINY_TEXT_ENCODER, projection_dim=32)
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_config(TINY_WHOLE.vae),
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=byte_tokenizer(16),
        tokenizer_2=byte_tokenizer(16),
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
        add_watermarker=False,
    )


def test_a_student_comes_back_from_shards(tiny_unet, tmp_path):
    student, _ = students.build(tiny_unet, plan_of(*CLME))
    moved(student).save_pretrained(tmp_path, max_shard_size="2MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = students.StudentUNet.from_pretrained(tmp_path).eval()
    assert torch.equal(run(again, batch=2), run(student, batch=2))


def test_a_config_alone_makes_a_student_of_the_same_shape(tiny_unet):
    student, _ = students.build(tiny_unet, plan_of(*CLME))
    twin = students.StudentUNet.from_config(dict(student.config)).eval()
    assert {n: t.shape for n, t in twin.state_dict().items()} == {n: t.shape for n, t in student.state_dict().items()}
    assert run(twin).isfinite().all()
    assert torch.equal(run(twin), run(twin))
    assert twin.applied.name_map["up_blocks.3.resnets.1"] == "up_blocks.3.resnets.2"


def test_a_folded_student_is_saved_where_its_config_says_so_and_refused_where_not(tiny_unet, tmp_path):
    gated = [e.model_copy(update={"options": {"gate": "timestep"}}) if getattr(e, "with_", "") == "cond_conv" else e
             for e in CLME]  # fmt: skip
    student = moved(students.build(tiny_unet, plan_of(*gated))[0])
    once = fold(student, [7])
    once.save_pretrained(tmp_path / "once")
    again = students.StudentUNet.from_pretrained(tmp_path / "once").eval()
    assert torch.equal(run(again), run(student))
    with pytest.raises(ValueError, match="could not be loaded again; save the student as it was built"):
        fold(student, [7, 8]).save_pretrained(tmp_path / "twice")


# ---------------------------------------------------------------------------------------------- what surrounds it


def test_a_students_folder_has_its_teachers_pixels_and_tokens(tmp_path, monkeypatch):
    """The record says them; in a record without them the teacher does, where it is still there."""
    monkeypatch.chdir(tmp_path)
    build.build_student("bk_sdm_tiny", "mini", tmp_path / "student")

    def sizes(**change):
        path = tmp_path / "student" / "build.json"
        record = json.loads(path.read_text()) | change
        path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))
        family = load_family("student")
        return family.size, family.vae_factor, family.tokens

    own = (96, 4, 16)
    exporter.export("student", "diffusers", tmp_path / "copy")
    exporter.export("student", "single_file", tmp_path / "one.safetensors", pipeline="none")
    for name in ("copy", "one.safetensors"):
        family = load_family(name)
        assert (family.size, family.vae_factor, family.tokens) == own
    assert sizes() == sizes(vae_factor=None, tokens=None) == own
    assert sizes(family="gone/") == (192, 8, 77)
    assert sizes(family=str(PIPELINE)) == own
    assert sizes(family="student") == (192, 8, 77)  # itself, which has no VAE
    assert sizes(vae_factor=2, tokens=9) == (48, 2, 9)
    with pytest.raises(ValueError, match=r"student/build\.json: tokens must be a number of at least 1, got 'many'"):
        sizes(tokens="many")
