"""The combined UNet (§2.2, Fig. 4): grafted blocks learn, everything else is the teacher's own memory."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from typer.testing import CliRunner

from asdm.cli import app
from asdm.models import build, graft, student as students
from asdm.plan.edits import GraftBlock, PruningPlan, RemoveBlock, RemoveLayer, ReplaceUnit
from asdm.plan.legality import resolve
from asdm.records.build import BuildResult
from asdm.unet.blocks import counterpart, topology
from tests.tiny import make_unet, run

SHALLOW = ("down_blocks.0", "up_blocks.3")
GRAFTS = tuple(GraftBlock(block=block) for block in SHALLOW)


def plan_of(*edits, **fields) -> PruningPlan:
    return PruningPlan(name="combined", family="tiny", edits=edits, **fields)


def preset(name: str, unet) -> tuple:
    return students.read_plan(name, unet, "tiny").edits


@pytest.fixture
def stage1(tiny_unet):
    """A stage-1 student, a layer less in every block, trained a little: every weight moved."""
    student, _ = students.build(copy.deepcopy(tiny_unet), plan_of(*preset("bk_sdm_base", tiny_unet)))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return student


def clme_and_gri(unet) -> tuple:
    left = [ReplaceUnit(unit=f"{b}.resnets.{i}", with_="cond_conv")
            for b, i in (("down_blocks.0", 0), ("up_blocks.3", 0), ("up_blocks.3", 2))]  # fmt: skip
    return (*preset("a_sdm", unet), *left, *GRAFTS)


# ---------------------------------------------------------------------------------------------- weights


def test_grafted_blocks_have_the_stage_1_students_weights_and_the_rest_the_teachers(tiny_unet, stage1):
    student, applied = graft.assemble(tiny_unet, stage1, plan_of(*preset("a_sdm", tiny_unet), *GRAFTS))
    theirs, first = tiny_unet.state_dict(), stage1.state_dict()
    for name, tensor in student.state_dict().items():
        if name.startswith(tuple(f"{block}." for block in SHALLOW)):
            assert torch.equal(tensor, first[name]), name
            assert tensor.data_ptr() != first[name].data_ptr(), f"{name} is the stage-1 student's own memory"
        else:
            assert tensor.data_ptr() == theirs[applied.teacher_name(name)].data_ptr(), name


def test_only_grafted_blocks_learn_and_training_them_leaves_both_parents_as_they_were(tiny_unet, stage1):
    before = {k: t.clone() for k, t in (*tiny_unet.state_dict().items(), *stage1.state_dict().items())}
    flags = {name: p.requires_grad for name, p in tiny_unet.named_parameters()}
    student, _ = graft.assemble(tiny_unet, stage1, plan_of(*clme_and_gri(tiny_unet)))
    learning = {name for name, p in student.named_parameters() if p.requires_grad}
    assert {".".join(name.split(".")[:2]) for name in learning} == set(SHALLOW)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    after = {**tiny_unet.state_dict(), **stage1.state_dict()}
    assert [name for name, tensor in before.items() if not torch.equal(after[name], tensor)] == []
    assert {name: p.requires_grad for name, p in tiny_unet.named_parameters()} == flags


def test_the_combined_unet_with_clme_starts_as_the_one_without(tiny_unet, stage1):
    """Own kernels are the stage-1 student's; the experts beside them are the original block's (§2.3)."""
    plain, _ = graft.assemble(tiny_unet, stage1, plan_of(*preset("a_sdm", tiny_unet), *GRAFTS))
    student, _ = graft.assemble(tiny_unet, stage1, plan_of(*clme_and_gri(tiny_unet)))
    assert torch.equal(run(student), run(plain))
    conv, original = student.up_blocks[3].resnets[1].conv2, tiny_unet.up_blocks[3].resnets
    assert torch.equal(conv.weight, stage1.up_blocks[3].resnets[1].conv2.weight)
    assert torch.equal(conv.experts, torch.stack([original[0].conv2.weight, original[1].conv2.weight]))


def test_the_original_kernel_may_be_an_expert_beside_the_stage_1_students(tiny_unet, stage1):
    edits = [
        edit.model_copy(update={"options": {"original": True}}) if getattr(edit, "with_", None) == "cond_conv" else edit
        for edit in clme_and_gri(tiny_unet)
    ]
    student, _ = graft.assemble(tiny_unet, stage1, plan_of(*edits))
    conv, original = student.up_blocks[3].resnets[1].conv2, tiny_unet.up_blocks[3].resnets
    assert torch.equal(conv.weight, stage1.up_blocks[3].resnets[1].conv2.weight)
    kernels = [original[i].conv2.weight for i in (2, 0, 1)]  # of the layer itself, then of the others
    assert torch.equal(conv.experts, torch.stack(kernels))


def test_the_audit_adds_up(tiny_unet, stage1):
    student, _ = graft.assemble(tiny_unet, stage1, plan_of(*clme_and_gri(tiny_unet)))
    found = graft.audit(student, tiny_unet)
    params = sum(p.numel() for p in student.parameters())
    assert found.trainable.params + found.frozen.params == params
    assert found.trainable.bytes == 4 * found.trainable.params
    assert set(found.trainable.names) | set(found.frozen.names) == {name for name, _ in student.named_parameters()}
    assert found.shared_with_teacher == found.frozen
    assert "up_blocks.3.resnets.1.conv2.routing.weight" in found.trainable.names


def test_a_plan_may_freeze_more(tiny_unet, stage1):
    plan = plan_of(*preset("a_sdm", tiny_unet), *GRAFTS, frozen=("up_blocks.3.resnets.2", "down_blocks.0.downsamplers"))
    student, _ = graft.assemble(tiny_unet, stage1, plan)
    learning = {name for name, p in student.named_parameters() if p.requires_grad}
    assert not any(n.startswith(("up_blocks.3.resnets.1.", "down_blocks.0.downsamplers.")) for n in learning)
    assert any(n.startswith("up_blocks.3.resnets.0.") for n in learning)
    with pytest.raises(ValueError, match=r"the plan freezes up_blocks\.9, which holds none"):
        graft.assemble(tiny_unet, stage1, plan.model_copy(update={"frozen": ("up_blocks.9",)}))


def test_blocks_are_counted_from_the_image_so_a_student_without_the_deepest_pair_fits(tiny_unet):
    smallest, _ = students.build(tiny_unet, plan_of(*preset("bk_sdm_tiny", tiny_unet)))
    assert counterpart(tiny_unet, "up_blocks.3", smallest) == "up_blocks.2"
    student, _ = graft.assemble(tiny_unet, smallest, plan_of(*preset("a_sdm", tiny_unet), *GRAFTS))
    assert run(student).shape == (1, 4, 16, 16)
    with pytest.raises(ValueError, match="no counterpart of mid_block"):
        graft.assemble(tiny_unet, smallest, plan_of(GraftBlock(block="mid_block")))


# ---------------------------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ((GraftBlock(block="up_blocks.9"),), r"cannot graft up_blocks\.9: there is no such block; choose from"),
        ((GRAFTS[0], GraftBlock(block="down_blocks.0", source="x")), "it is already grafted"),
        ((RemoveBlock(block="mid_block"), GraftBlock(block="mid_block")), "it is already removed whole"),
    ],
)
def test_a_graft_that_cannot_be_is_refused_by_the_plan(tiny_unet, edits, words):
    with pytest.raises(ValueError, match=words):
        resolve(topology(tiny_unet), edits)


def test_a_stage_1_student_that_does_not_fit_is_named_with_the_place(tiny_unet, stage1):
    with pytest.raises(ValueError, match=r"cannot graft down_blocks\.0: attentions\.1\..* differs between"):
        graft.assemble(tiny_unet, stage1, plan_of(*GRAFTS))
    with pytest.raises(ValueError, match="grafts no blocks"):
        graft.assemble(tiny_unet, stage1, plan_of(*preset("a_sdm", tiny_unet)))
    other = (RemoveLayer(block="down_blocks.0", layer=0), RemoveLayer(block="up_blocks.3", layer=1))
    with pytest.raises(ValueError, match=r"removes its layers \[0\], the stage-1 student lacks \[1\]"):
        graft.assemble(tiny_unet, stage1, plan_of(*other, *GRAFTS), preset("bk_sdm_base", tiny_unet))


def test_a_plan_with_grafts_is_not_built_without_the_student(tiny_unet):
    with pytest.raises(ValueError, match=r"takes down_blocks\.0 and up_blocks\.3 from a stage-1 student.*--stage1"):
        students.build(tiny_unet, plan_of(*preset("a_sdm", tiny_unet), *GRAFTS))


# ---------------------------------------------------------------------------------------------- from folder to folder


def test_asdm_build_assembles_from_a_stage_1_folder_and_says_what_learns(tiny_folder, tmp_path):
    build.build_student("bk_sdm_base", str(tiny_folder), tmp_path / "stage1")
    path = plan_of(*clme_and_gri(make_unet())).save(tmp_path / "plan.json")
    line = ["build", str(path), "--teacher", str(tiny_folder), "--stage1", str(tmp_path / "stage1")]
    done = CliRunner().invoke(app, [*line, "-o", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    result = BuildResult.model_validate(json.loads(done.stdout))
    assert result.stage1 == str(tmp_path / "stage1")
    assert {name.split(".")[0] for name in result.audit.trainable.names} == {"down_blocks", "up_blocks"}
    assert result.audit.frozen == result.audit.shared_with_teacher
    said = build.describe(result, tmp_path / "out")
    assert f"{len(result.audit.trainable.names)} tensors learn, grafted from" in said

    teacher, first = (students.UNet2DConditionModel.from_pretrained(f) for f in (tiny_folder, tmp_path / "stage1"))
    student, _ = graft.assemble(teacher, first, PruningPlan.load(path))
    again = students.StudentUNet.from_pretrained(tmp_path / "out").eval()
    assert again.state_dict().keys() == student.state_dict().keys()
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in student.state_dict().items())


def test_without_graft_edits_the_blocks_that_a_plan_compresses_are_grafted(tiny_folder, tmp_path):
    build.build_student("bk_sdm_base", str(tiny_folder), tmp_path / "stage1")
    result = build.build_student("a_sdm", str(tiny_folder), tmp_path / "out", str(tmp_path / "stage1"))
    plan = PruningPlan.load(tmp_path / "out" / "plan.json")
    assert [edit.block for edit in plan.edits if isinstance(edit, GraftBlock)] == list(SHALLOW)
    assert result.plan_sha256 == plan.sha256()


def test_a_graft_may_name_its_source_and_several_are_refused(tiny_folder, tmp_path):
    build.build_student("bk_sdm_base", str(tiny_folder), tmp_path / "stage1")
    named = [GraftBlock(block=block, source=str(tmp_path / "stage1")) for block in SHALLOW]
    edits = preset("a_sdm", make_unet())
    good = plan_of(*edits, *named).save(tmp_path / "good.json")
    assert build.build_student(str(good), str(tiny_folder), tmp_path / "out").stage1 == str(tmp_path / "stage1")
    two = plan_of(*edits, named[0], GraftBlock(block="up_blocks.3", source="other")).save(tmp_path / "two.json")
    with pytest.raises(ValueError, match="name several stage-1 students"):
        build.build_student(str(two), str(tiny_folder), tmp_path / "no")
    with pytest.raises(ValueError, match="the stage-1 student must be a folder, got nowhere"):
        build.build_student("a_sdm", str(tiny_folder), tmp_path / "no", "nowhere")


# ---------------------------------------------------------------------------------------------- tree beside tree


def test_the_diff_tells_for_every_part_what_became_of_it(tiny_folder, tmp_path):
    result = build.build_student("a_sdm", str(tiny_folder), tmp_path / "out")
    fates = {row.fqn: row.fate for row in result.diff}
    assert {fqn for fqn, fate in fates.items() if fate == "goes"} == set(result.removed)
    assert {fqn for fqn, fate in fates.items() if fate == "replaced"} == set(result.replaced)
    assert sum(row.params for row in result.diff) == result.teacher_params
    assert sum(row.student_params for row in result.diff) == result.params
    assert sum(row.macs for row in result.diff) == result.teacher_macs
    assert sum(row.student_macs for row in result.diff) == result.macs


def test_the_diff_is_printed_short_and_saved_whole(tiny_folder, tmp_path):
    result = build.build_student("a_sdm", str(tiny_folder), tmp_path / "out")
    saved, printed = (tmp_path / "out" / "diff.txt").read_text(), build.describe(result, tmp_path / "out")
    lines = saved.splitlines()
    gone = next(line for line in lines if "up3.t1 " in line)
    assert gone.rstrip().endswith("│")
    assert any("up3.t2 → gri_attention" in line for line in lines)
    assert len({line.index("│") for line in lines}) == 1
    assert "mid.r0" in saved
    assert "mid.r0" not in printed
    assert "up3.t2 → gri_attention" in printed
