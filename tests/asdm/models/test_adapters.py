"""LoRA and ControlNet made for a teacher, on its students."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from asdm.models import export as exporter, ldm_names, student as students
from asdm.models.adapters import fit_control, fit_lora
from asdm.models.families import load_family
from asdm.models.loading import load_unet, meta_unet
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.plan.edits import PruningPlan, RemoveBlock, RemoveLayer, RemoveUnit, ReplaceUnit
from asdm.plan.legality import resolve
from asdm.unet import blocks
from asdm.unet.surgery import applicable
from tests.commands import refused
from tests.tiny import TINY_WHOLE, make_unet, unet_args

PAIR = (RemoveLayer(block="down_blocks.0", layer=0), RemoveLayer(block="up_blocks.3", layer=1))
GRI = ReplaceUnit(unit="up_blocks.3.attentions.2", with_="gri_attention")


def build(unet, *edits):
    return students.build(unet, PruningPlan(family="tiny", edits=edits))


# ---------------------------------------------------------------------------------------------- LoRA


def lora_of(unet, rank: int = 2) -> dict[str, torch.Tensor]:
    """LoRA weights on every to_q and to_v of a UNet, as training scripts save them."""
    generator, weights = torch.Generator().manual_seed(3), {}
    for name, module in unet.named_modules():
        if name.endswith(("attn1.to_q", "attn2.to_v")):
            for side, shape in (("A", (rank, module.in_features)), ("B", (module.out_features, rank))):
                weights[f"unet.{name}.lora_{side}.weight"] = torch.randn(shape, generator=generator)
    return weights


def test_lora_weights_follow_their_modules_and_the_rest_is_named(tiny_unet):
    lora = lora_of(tiny_unet)
    _, applied = build(tiny_unet, *PAIR, GRI, RemoveBlock(block="mid_block"))
    fitted, left_out = fit_lora(lora | {"text_encoder.x.lora_A.weight": torch.zeros(1)}, applied)
    q = "transformer_blocks.0.attn1.to_q"
    moved, came = (f"unet.up_blocks.3.attentions.{i}.{q}.lora_A.weight" for i in (1, 2))
    assert fitted[moved] is lora[came]
    assert left_out == tuple(
        f"{unit}.transformer_blocks.0.{attention}"
        for unit in ("down_blocks.0.attentions.0", "up_blocks.3.attentions.1", "mid_block.attentions.0")
        for attention in ("attn1.to_q", "attn2.to_v")
    )
    assert len(fitted) == len(lora) - 2 * len(left_out) + 1
    assert "text_encoder.x.lora_A.weight" in fitted


def as_kohya(name: str) -> str:
    return "lora_unet_" + name.replace(".", "_") + ".lora_down.weight"


def test_a_lora_keeps_its_naming(tiny_unet):
    """diffusers' names as kohya's trainer writes them, and LDM's, which that trainer uses for SDXL."""
    _, applied = build(tiny_unet, *PAIR)
    q = "transformer_blocks.0.attn1.to_q"
    ldm = {unit: name for unit, name in ldm_names.unet_names(tiny_unet).items() if unit.endswith(f"{q}.weight")}
    moved, gone = f"up_blocks.3.attentions.2.{q}", f"up_blocks.3.attentions.1.{q}"
    of_ldm = [as_kohya(ldm[f"{unit}.weight"].removesuffix(".weight")) for unit in (moved, gone)]
    assert of_ldm[0].startswith("lora_unet_output_blocks_11_1_")
    weights = dict.fromkeys([as_kohya(moved), as_kohya(gone), *of_ldm, "lora_te_text_model_x.alpha"], 0)
    fitted, left_out = fit_lora(weights, applied)
    student = dict(ldm_names.unet_names(build(tiny_unet, *PAIR)[0]))
    now = student[f"up_blocks.3.attentions.1.{q}.weight"].removesuffix(".weight")
    assert now.startswith("output_blocks.10.1.")
    assert set(fitted) == {
        as_kohya(f"up_blocks.3.attentions.1.{q}"), as_kohya(now), "lora_te_text_model_x.alpha"
    }  # fmt: skip
    assert left_out == tuple(name.removeprefix("lora_unet_").partition(".")[0] for name in (as_kohya(gone), of_ldm[1]))


def test_a_lora_of_another_model_is_refused(tiny_unet):
    _, applied = build(tiny_unet, *PAIR)
    with pytest.raises(ValueError, match="lora_unet_double_blocks_0_x names no module of the teacher"):
        fit_lora({"lora_unet_double_blocks_0_x": 0}, applied)


def test_a_converted_lora_changes_the_same_modules(tiny_unet, tmp_path):
    """As a file: fused into the student it gives what the teacher's gives in the module that moved."""
    student, applied = build(tiny_unet, *PAIR, GRI)
    student.save_pretrained(tmp_path / "student")
    lora = {name: tensor.contiguous() for name, tensor in lora_of(tiny_unet).items()}
    save_file(lora, tmp_path / "style.safetensors", {"ss_tag": "style"})
    result = exporter.export(str(tmp_path / "student"), "onnx", tmp_path / "own.safetensors",
                             lora=tmp_path / "style.safetensors")  # fmt: skip
    assert load_file(tmp_path / "own.safetensors").keys() == fit_lora(lora, applied).weights.keys()
    assert "4 modules are not in the student" in exporter.describe(result, tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match=r"own\.safetensors was converted already"):
        exporter.export(str(tmp_path / "student"), "onnx", tmp_path / "again.safetensors",
                        lora=tmp_path / "own.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match="mini is not a student: it has neither"):
        exporter.export("mini", "onnx", tmp_path / "again.safetensors", lora=tmp_path / "style.safetensors")


def test_a_pipeline_with_a_student_loads_the_teachers_lora(tiny_unet):
    """The loaded weights are those of the teacher's module, and the output moves."""
    pytest.importorskip("peft")
    student, applied = build(tiny_unet, *PAIR, GRI)
    made = pipeline(TINY_WHOLE, student, Setup())
    with torch.no_grad():
        before = student(**unet_args())[0]
    lora = lora_of(tiny_unet)
    made.load_lora_weights(fit_lora(lora, applied).weights, adapter_name="style")
    loaded = dict(made.unet.named_parameters())
    name = "up_blocks.3.attentions.{}.transformer_blocks.0.attn1.to_q.lora_A.{}weight"
    assert torch.equal(loaded[name.format(1, "style.")], lora["unet." + name.format(2, "")])
    with torch.no_grad():
        assert not torch.allclose(student(**unet_args())[0], before)
    made.unload_lora_weights()
    with torch.no_grad():
        assert torch.equal(student(**unet_args())[0], before)


def test_a_student_draws_with_its_teachers_lora_as_with_the_converted_one(run, tmp_path):
    """In a folder and in a single file, whose metadata hold the map of names."""
    mini = load_family("mini")
    save_file(lora_of(load_unet(mini, str(mini.folder))), tmp_path / "style.safetensors")
    done = run("asdm", "build", "bk_sdm_small", "--teacher", "mini", "-o", "student")
    assert done.code == 0, done.err
    for words in (
        ("student", "--lora", "style.safetensors", "-o", "converted.safetensors"),
        ("student", "--to", "single_file", "-o", "student.safetensors"),
    ):
        done = run("asdm", "export", *words)
        assert done.code == 0, done.err
    pictures = {}
    for name, words in {
        "plain": ("student",),
        "fitted": ("student", "--lora", "style.safetensors:0.01"),
        "converted": ("student", "--lora", "converted.safetensors:0.01"),
        "file": ("student.safetensors", "--lora", "style.safetensors:0.01"),
    }.items():
        done = run("asdm", "generate", "a heart", "--student", *words, "--steps", 1, "-o", f"{name}.png")
        assert done.code == 0, done.err
        pictures[name] = (tmp_path / f"{name}.png").read_bytes()
        assert ("the student has no place for" in done.err) == (name in ("fitted", "file"))
    assert pictures["fitted"] == pictures["converted"] == pictures["file"] != pictures["plain"]


@pytest.mark.parametrize("replacement", ["no_self_attention", "low_rank_attention", "fewer_heads"])
def test_a_lora_reaches_what_a_replaced_unit_still_has(run, tmp_path, replacement):
    """Modules that are gone or of another shape are counted; the others are fused."""
    mini = load_family("mini")
    save_file(lora_of(load_unet(mini, str(mini.folder))), tmp_path / "style.safetensors")
    unit = "down_blocks.1.attentions.0"
    edit = next(one for one in applicable(meta_unet(mini), [replacement], [unit]))
    plan = PruningPlan(name="mine", family="mini", edits=(edit,))
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert run("asdm", "build", "plan.json", "--teacher", "mini", "-o", "student").code == 0
    pictures = []
    for words in ((), ("--lora", "style.safetensors:0.01")):
        done = run(
            "asdm", "generate", "a heart", "--student", "student", *words, "--steps", 1, "-o", "x.png", "--force"
        )
        assert done.code == 0, done.err
        pictures.append((tmp_path / "x.png").read_bytes())
    assert pictures[0] != pictures[1]
    assert re.search(r"the student has no place for \d+ of its modules", done.err)


def test_a_lora_of_another_model_is_refused_for_a_student(run, tmp_path):
    save_file({"unet.nowhere.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    assert run("asdm", "build", "bk_sdm_small", "--teacher", "mini", "-o", "student").code == 0
    words = ("asdm", "generate", "a heart", "--lora", "other.safetensors", "-o", "x.png", "--student")
    refused(run(*words, "student"), "other.safetensors: the LoRA key unet.nowhere.lora_A.weight names no module")
    refused(run(*words, "mini/"), "mini/ does not exist")


# ---------------------------------------------------------------------------------------------- ControlNet


def residuals_of(unet, size: int = 16):
    """What a ControlNet gives `unet`: one residual per skip, as large as the skip, and one for the middle."""
    shapes, handles = [], []

    def note(_module, _args, out):
        shapes.append((out[0] if isinstance(out, tuple) else out).shape)

    for name in blocks.skips(unet):
        module = unet.get_submodule(name.replace(".layer.", ".resnets."))
        handles.append(module.register_forward_hook(note))
    with torch.no_grad():
        unet(**unet_args(height=size, width=size))
    for handle in handles:
        handle.remove()
    generator = torch.Generator().manual_seed(5)
    down = [torch.randn(shape, generator=generator) for shape in shapes]
    return {
        "down_block_additional_residuals": down,
        "mid_block_additional_residual": torch.randn(down[-1].shape, generator=generator),
    }


def controlled(unet, control):
    with torch.no_grad():
        return unet(**unet_args(), **control)[0]


@pytest.mark.parametrize("mid", [(), (RemoveBlock(block="mid_block"),)], ids=["with mid", "without mid"])
def test_a_teachers_residuals_find_the_skips_that_are_left(tiny_unet, mid):
    student, _ = build(tiny_unet, *PAIR, GRI, *mid)
    control = residuals_of(tiny_unet)
    down = control["down_block_additional_residuals"]
    assert len(down) == len(blocks.skips(tiny_unet)) == 12
    fitting = control | {"down_block_additional_residuals": [down[0], *down[2:]]}  # without down_blocks.0.layer.0
    assert torch.equal(controlled(student, control), controlled(student, fitting))
    assert not torch.equal(controlled(student, control), controlled(student, {}))


def test_residuals_of_another_number_are_refused_and_the_lost_skips_named(tiny_unet):
    student, _ = build(tiny_unet, *PAIR, GRI)
    control = residuals_of(tiny_unet)
    control["down_block_additional_residuals"] = control["down_block_additional_residuals"][:9]
    with pytest.raises(ValueError, match=r"gives 9 residuals; this student has 11 skips and its teacher 12 "
                       r"\(gone: down_blocks\.0\.layer\.0\), so give 11 or 12"):  # fmt: skip
        controlled(student, control)


def test_positional_residuals_are_fitted_too(tiny_unet):
    student, _ = build(tiny_unet, *PAIR, GRI)
    control, args = residuals_of(tiny_unet), unet_args()
    with torch.no_grad():
        found = student(args["sample"], args["timestep"], args["encoder_hidden_states"], None, None, None, None, None,
                        *control.values(), return_dict=False)[0]  # fmt: skip
    assert torch.equal(found, controlled(student, control))


def test_residuals_lose_what_the_deepest_pair_loses(tiny_unet):
    edits = (RemoveBlock(block="mid_block"), RemoveBlock(block="down_blocks.3"), GRI)
    student, _ = build(tiny_unet, *edits)
    control = residuals_of(tiny_unet)
    down = control["down_block_additional_residuals"]
    fitting = {
        "down_block_additional_residuals": down[:9],  # not down_blocks.2's sampler, nor the two of down_blocks.3
        "mid_block_additional_residual": torch.zeros(()),
    }
    assert torch.equal(controlled(student, control), controlled(student, fitting))


def test_an_identity_keeps_its_skip(tiny_unet):
    student, _ = build(tiny_unet, RemoveUnit(unit="down_blocks.0.resnets.0"))
    assert controlled(student, residuals_of(tiny_unet)).shape == (1, 4, 16, 16)


def test_a_plain_student_is_fitted_by_hand(tiny_unet):
    edits = (RemoveLayer(block="down_blocks.0", layer=0), RemoveLayer(block="up_blocks.3", layer=1))
    student, _ = build(tiny_unet, *edits)
    control = residuals_of(tiny_unet)
    with pytest.raises(RuntimeError, match="size of tensor"):
        controlled(student, control)
    handle = fit_control(student, blocks.skips(tiny_unet), resolve(blocks.topology(tiny_unet), edits))
    assert controlled(student, control).shape == (1, 4, 16, 16)
    handle.remove()


def test_a_unet_without_control_is_left_alone(tiny_unet):
    whole, _ = build(tiny_unet, GRI)
    assert controlled(whole, {}).shape == controlled(make_unet(), {}).shape
