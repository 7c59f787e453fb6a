"""Which weights a command's words name: folders, files, variants and hub ids; and that none are random unasked."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file

from asdm.distill.losses.perceptual import load_vgg
from asdm.mini import PIPELINE
from asdm.models import checkpoints, drawing
from asdm.models.execution import RANDOM
from asdm.models.families import load_family
from asdm.models.loading import load_unet, meta_unet
from asdm.models.networks import ClipJudge, Vgg
from asdm.models.pipeline import pipeline
from asdm.models.recognition import from_file
from asdm.models.settings import GenerateSettings, PictureSetup, Setup
from asdm.models.sources import resolve
from asdm.utils import console
from tests import single_files
from tests.commands import refused
from tests.tiny import SMALL, SMALLEST, TINY_FAMILY, make_unet

UNET = PIPELINE / "unet" / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The mini as one file in LDM's names."""
    return single_files.write(single_files.ldm(PIPELINE, blocks=3), tmp_path_factory.mktemp("ldm") / "mini.safetensors")


@pytest.fixture(scope="module")
def weights():
    return load_file(UNET)


def same(unet, weights):
    own = unet.state_dict()
    return own.keys() == weights.keys() and all(torch.equal(own[n], weights[n].to(own[n].dtype)) for n in own)


# ---------------------------------------------------------------------------------------------- single files


def test_a_checkpoint_is_recognised_and_holds_the_folders_weights(checkpoint, weights):
    for name, setup in (
        (str(checkpoint), Setup()),
        (None, Setup(weights=str(checkpoint))),
        ("mini", Setup(weights=str(checkpoint))),
        (None, Setup(weights=str(checkpoint), config=str(PIPELINE))),
    ):
        family, chosen = resolve(name, setup)
        assert (chosen, family.unet["norm_num_groups"]) == (str(checkpoint), 8)
        assert family.name == ("mini" if name == "mini" else str(checkpoint))
        assert same(load_unet(family, chosen), weights)


def test_a_unet_alone_is_enough_in_either_naming(weights, tmp_path):
    plain = single_files.write(weights, tmp_path / "plain.safetensors")
    names = single_files.unet_names(weights)
    ldm = single_files.write({names[n]: t for n, t in weights.items()}, tmp_path / "ldm.safetensors")
    for file in (plain, ldm):
        family, chosen = resolve(None, Setup(weights=str(file)))
        assert same(load_unet(family, chosen), weights)
        with pytest.raises(ValueError, match="holds a UNet alone, and pictures and captions need a text encoder"):
            resolve(str(file), PictureSetup(config=str(tmp_path_of_configs(tmp_path))), needs="asdm generate")


def tmp_path_of_configs(folder: Path) -> Path:
    """The mini's UNet config in a folder of its own: configs without weights."""
    (folder / "configs").mkdir(exist_ok=True)
    shutil.copy(PIPELINE / "unet" / "config.json", folder / "configs")
    return folder / "configs"


def test_channels_and_prediction_are_the_files_own(weights, tmp_path):
    inpainting = weights | {"conv_in.weight": torch.zeros(32, 9, 3, 3), "v_pred": torch.zeros(1)}
    del inpainting["v_pred"]
    file = single_files.write(
        inpainting, tmp_path / "inpainting.safetensors", **{"modelspec.prediction_type": "epsilon"}
    )
    family = from_file(file)
    assert (family.unet["in_channels"], family.prediction_type) == (9, "epsilon")
    assert load_family("mini").prediction_type == "v_prediction"
    assert resolve(str(file), PictureSetup(prediction_type="v_prediction"))[0].prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.ckpt", ("is a pickle, which can run code", "weights_only=True")),
        ("unet.bin", ("is a pickle",)),
        ("gone.safetensors", ("the checkpoint gone.safetensors does not exist",)),
        ("broken.safetensors", ("is not a safetensors file",)),
        ("lora.safetensors", ("holds no UNet; it looks like a LoRA, which goes with a whole checkpoint (--lora)",)),
        ("vae.safetensors", ("holds no UNet; it looks like a VAE, which goes with a whole checkpoint (--vae)",)),
        ("other.safetensors", ("has the shapes of none of mini, sd15", "name its configs (--config DIR)")),
    ],
)
def test_a_file_that_is_no_checkpoint_says_why(name, words, run, tmp_path):
    for pickle in ("model.ckpt", "unet.bin", "broken.safetensors"):
        (tmp_path / pickle).write_bytes(b"not a model")
    save_file({"lora_unet_mid.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    save_file({"decoder.conv_in.weight": torch.zeros(1)}, tmp_path / "vae.safetensors")
    save_file(make_unet(**SMALLEST).state_dict(), tmp_path / "other.safetensors")
    refused(run("asdm-prof", "flops", name), *words)


def test_another_familys_checkpoint_is_refused_by_a_shape(checkpoint):
    with pytest.raises(ValueError, match=r"as sd15: conv_in.bias has shape \[32\] instead of \[320\]"):
        resolve("sd15", Setup(weights=str(checkpoint)))


def test_ldm_names_of_blocks_of_unequal_depth_are_refused(checkpoint):
    family = load_family("mini")
    unequal = meta_unet(replace(family, unet=family.unet | {"layers_per_block": [1, 2, 2, 2]}))
    with pytest.raises(ValueError, match="blocks of unequal depth"):
        checkpoints.unet_shapes(checkpoint, unequal)


def header(path: Path, content: object) -> Path:
    text = json.dumps(content).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return path


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"conv_in.weight": {}}, "is damaged: the header states no shape for conv_in.weight"),
        ({"conv_in.weight": 3}, "is damaged: the header states no shape for conv_in.weight"),
        ({"conv_in.weight": ENTRY | {"shape": ["4"]}}, "is damaged: the header states no shape for conv_in.weight"),
        ({"conv_in.weight": ENTRY | {"shape": [2**40, 2]}}, "is damaged: the header states no shape"),
        ({"conv_in.weight": ENTRY, "__metadata__": [1]}, "is damaged: its metadata are not texts by name"),
        ({"conv_in.weight": ENTRY, "__metadata__": {"asdm.unet_config": 3}}, "is damaged: its metadata are not texts"),
        ({"conv_in.weight": ENTRY, "__metadata__": {"asdm.unet_config": "[" * 5000}}, "is not valid JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_with_a_damaged_header_is_refused_by_name(content, words, run, tmp_path):
    header(tmp_path / "model.safetensors", content)
    refused(run("asdm-prof", "flops", "model.safetensors"), "model.safetensors", words)


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(pipe := tmp_path / "model.safetensors")
    for read in (checkpoints.read_header, checkpoints.read_tensors):
        with pytest.raises(ValueError, match=r"model\.safetensors is not a file"):
            read(pipe)


# ---------------------------------------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path):
    """The mini's folder without its UNet's weights."""
    copy = Path(shutil.copytree(PIPELINE, tmp_path / "copy"))
    (copy / "unet" / UNET.name).unlink()
    return copy


def test_a_variant_that_the_unet_alone_has_is_taken_of_it_alone(folder, weights):
    """As Stable Diffusion 1's folder has non_ema: the VAE and the text encoder come in one kind."""
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    setup = PictureSetup(weights=str(folder), variant="non_ema")
    assert pipeline(load_family(str(folder)), None, setup).vae is not None
    setup = PictureSetup(weights=str(folder), variant="non_ema", vae=str(PIPELINE / "vae"))
    assert pipeline(load_family(str(folder)), None, setup).vae is not None


@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
def test_the_only_variant_is_taken(folder, weights, variant):
    save_file(weights, folder / "unet" / f"diffusion_pytorch_model.{variant}.safetensors")
    for named in (None, variant):
        family, chosen = resolve(str(folder), Setup(variant=named))
        assert same(load_unet(family, chosen, variant=named), weights)
    with pytest.raises(ValueError, match=rf"has its weights as {variant}; choose one \(--variant\), got ema"):
        resolve(str(folder), Setup(variant="ema"))


def test_of_two_variants_one_is_named_and_plain_files_come_first(folder, weights):
    files = {name: {"conv_in.bias": torch.full((1,), n)} for n, name in enumerate((".fp16", ".non_ema", ""))}
    for name in (".fp16", ".non_ema"):
        save_file(files[name], folder / "unet" / f"diffusion_pytorch_model{name}.safetensors")
    with pytest.raises(ValueError, match=r"has its weights as fp16, non_ema; choose one \(--variant\), got none"):
        resolve(str(folder), Setup())
    save_file(files[""], folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert [path.name for path in checkpoints.weight_files(folder / "unet")] == [UNET.name]


def test_sharded_weights_are_one(folder, weights):
    names = sorted(weights)
    index = {}
    for n, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"diffusion_pytorch_model-0000{n}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / "unet" / file)
        index |= dict.fromkeys(part, file)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    assert same(load_unet(*resolve(str(folder), Setup())), weights)
    (folder / "unet" / file).unlink()
    with pytest.raises(ValueError, match=f"lacks {file}, which its index names"):
        resolve(str(folder), Setup())
    path.write_text(json.dumps({"weight_map": {"conv_in.bias": "../../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match=r"names elsewhere\.safetensors, which is not a safetensors file beside it"):
        resolve(str(folder), Setup())
    path.write_text(json.dumps({"weight_map": {"conv_in.bias": None, "conv_in.weight": file}}))
    with pytest.raises(ValueError, match=r"index\.json is not an index of weights"):
        resolve(str(folder), Setup())
    path.write_text(json.dumps({"weight_map": {"conv_in.bias": "x" * 5000 + ".safetensors"}}))
    with pytest.raises(ValueError, match=r"lacks x{57}…, which its index names"):
        resolve(str(folder), Setup())


def test_a_hub_id_is_taken_from_the_hubs_cache(tmp_path, monkeypatch, weights):
    cache = tmp_path / "models--someone--mini"
    shutil.copytree(PIPELINE, cache / "snapshots" / "abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.HF_HUB_OFFLINE", True, raising=False)
    family, chosen = resolve(None, Setup(weights="someone/mini"))
    assert (family.name, chosen) == ("someone/mini", "someone/mini")
    assert same(load_unet(family, chosen), weights)
    with pytest.raises(ValueError, match="cannot load someone/else, which is not a local folder or file, from the hub"):
        resolve(None, Setup(weights="someone/else"))


# ---------------------------------------------------------------------------------------------- never random unasked


def test_a_bare_name_is_random_where_values_do_not_matter_and_says_so(capfd):
    console.say_once.cache_clear()
    assert resolve("sd15", Setup())[1] == RANDOM
    assert "sd15 comes without weights: using random ones" in capfd.readouterr().err
    with pytest.raises(ValueError, match=r"asdm distill needs trained weights, and sd15 is an .* or --weights random"):
        resolve("sd15", Setup(), needs="asdm distill")
    assert resolve("sd15", Setup(weights=RANDOM), needs="asdm distill")[1] == RANDOM
    assert resolve("mini", Setup(), needs="asdm distill")[1] == str(PIPELINE)


NEEDS_WEIGHTS = [
    ("asdm", "distill", "a_sdm", "--steps", "2", "-o", "out"),
    ("asdm", "cache", "emoji", "-o", "out"),
    ("asdm", "bench", "--student", "a_sdm", "--quality", "-o", "out"),
    ("asdm-prof", "sensitivity", "sd15", "-o", "out.json"),
    ("asdm-prof", "search", "sd15", "--budget", "0.8", "-o", "out"),
    ("asdm", "generate", "a heart", "--family", "sd15", "-o", "out.png"),
]


@pytest.mark.parametrize("words", NEEDS_WEIGHTS, ids=lambda words: words[1])
def test_what_needs_trained_weights_is_refused_without(words, run, tmp_path):
    refused(run(*words), "needs trained weights, and sd15 is an architecture without any", "--weights random")
    assert not list(tmp_path.iterdir())


RANDOM_IS_FINE = [
    ("asdm-prof", "profile", "sd15", "--backend", "fake", "--json", "-o", "out.json"),
    ("asdm", "build", "bk_sdm_tiny", "--json", "-o", "out"),
    ("asdm", "export", "sd15", "--to", "diffusers", "--json", "-o", "out"),
    ("asdm", "bench", "--student", "bk_sdm_tiny", "--backend", "fake", "--json", "-o", "out.json"),
]


@pytest.mark.parametrize("words", RANDOM_IS_FINE, ids=lambda words: words[1])
def test_what_times_and_counts_a_bare_family_says_and_records_that_it_is_random(words, run, monkeypatch):
    """On a small model under the name of a family that comes without weights."""
    monkeypatch.setattr("asdm.models.families.sd15.FAMILY", replace(TINY_FAMILY, name="sd15"))
    done = run(*words)
    assert done.code == 0, done.err
    assert "sd15 comes without weights: using random ones" in done.err
    assert json.loads(done.out)["weights"] == RANDOM


def test_costs_of_a_bare_family_need_no_weights(run):
    done = run("asdm-prof", "flops", "sd15")
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("unet/diffusion_pytorch_model.bin", "diffusion_pytorch_model.bin is a pickle"),
        (None, "unet holds no weights"),
        ("config file", "is a config without weights; name some"),
    ],
)
def test_what_is_named_is_never_random(folder, content, words, run):
    teacher = folder / "unet" / "config.json" if content == "config file" else folder
    if content and content.endswith(".bin"):
        (folder / content).write_bytes(b"a pickle")
    for command in (
        ("asdm", "build", "a_sdm", "--teacher", teacher, "-o", "out"),
        ("asdm", "export", teacher, "--to", "diffusers", "-o", "out"),
        ("asdm", "distill", "a_sdm", "--teacher", teacher, "--steps", "2", "-o", "out"),
        ("asdm", "generate", "a heart", "--family", teacher, "-o", "out.png"),
        ("asdm", "bench", "--teacher", teacher, "--student", "a_sdm", "-o", "out.json"),
        ("asdm", "cache", "emoji", "--teacher", teacher, "-o", "out"),
        ("asdm-prof", "profile", teacher, "-o", "out.json"),
        ("asdm-prof", "sensitivity", teacher, "-o", "out.json"),
        ("asdm-prof", "search", teacher, "--budget", "0.8", "-o", "out"),
    ):
        refused(run(*command), words)


def test_a_unet_alone_takes_its_familys_other_parts_or_is_refused(tmp_path, run):
    shutil.copytree(PIPELINE / "unet", tmp_path / "my-unet")
    alone = run("asdm", "generate", "a heart", "--weights", "my-unet", "-o", "out.png")
    refused(alone, "my-unet holds a UNet alone, and pictures and captions need a text encoder and a VAE too")
    refused(
        run("asdm", "distill", "a_sdm", "--teacher", "my-unet", "--steps", "2", "-o", "out"), "my-unet holds a UNet"
    )
    for weights in ([], ["--weights", "my-unet"]):
        word = weights[-1:] or ["own"]
        done = run("asdm", "generate", "a heart", "--family", "mini", *weights, "--steps", 1, "-o", f"{word[0]}.png")
        assert done.code == 0, done.err
    assert (tmp_path / "own.png").read_bytes() == (tmp_path / "my-unet.png").read_bytes()


@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(part, value, tmp_path, run):
    """They would draw a black picture."""
    copy = Path(shutil.copytree(PIPELINE, tmp_path / "copy"))
    file = copy / part / UNET.name
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("conv_in.bias"))
    tensors[name][1] = value
    save_file(tensors, file)
    refused(run("asdm", "generate", "a heart", "--family", copy, "-o", "out.png"), f"{name} holds NaN or infinite")
    assert not (tmp_path / "out.png").exists()


def test_a_judge_that_is_a_pickle_is_not_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle, which can run code"):
        ClipJudge(str(tmp_path))


SIDES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attn_implementation": "someone/kernel"}, "attn_implementation 'someone/kernel' is not supported"),
        ({"text_config": {"_attn_implementation": "someone/kernel"}}, "'someone/kernel' is not supported"),
        ({"attn_implementation": {"text_config": "someone/kernel"}}, "is not supported; leave it out"),
        ({"vision_config": {"num_hidden_layers": 10**6}}, "num_hidden_layers must be at most 200, got 1000000"),
        ({"text_config": [1]}, "text_config must be an object"),
        ({"model_type": "bert"}, "config.json is not the config of a CLIP"),
        ({"projection_dim": "x"}, "cannot load a CLIP from"),
    ],
    ids=str,
)
def test_a_judge_with_a_config_of_nonsense_is_refused_by_name(change, words, tmp_path, monkeypatch):
    """And nothing is asked of the hub."""
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("looked up"))
    save_file({"logit_scale": torch.ones(1)}, tmp_path / "model.safetensors")
    own = {"model_type": "clip", "text_config": SIDES, "vision_config": SIDES | {"image_size": 16, "patch_size": 8}}
    (tmp_path / "config.json").write_text(json.dumps(own | change))
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        ClipJudge(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_part_without_some_of_its_weights_is_refused_not_drawn_at_random(part, tmp_path):
    teacher = Path(shutil.copytree(PIPELINE, tmp_path / "teacher"))
    file = next((teacher / part).glob("*.safetensors"))
    tensors = load_file(file)
    del tensors[next(name for name in tensors if name.endswith("norm.bias"))]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"the {part} of {teacher}: 1 weights are missing, such as .*norm.bias"):
        pipeline(load_family(str(teacher)), None, PictureSetup(weights=str(teacher)))


def test_a_kernel_of_the_hub_in_any_part_of_a_pipeline_is_refused(tmp_path):
    teacher = Path(shutil.copytree(PIPELINE, tmp_path / "teacher"))
    index = json.loads((teacher / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    (teacher / "model_index.json").write_text(json.dumps(index))
    (teacher / "safety_checker").mkdir()
    kernel = {"vision_config": {"attn_implementation": "someone/kernel"}}
    (teacher / "safety_checker" / "config.json").write_text(json.dumps(kernel))
    with pytest.raises(ValueError, match=r"safety_checker/config\.json: attn_implementation 'someone/kernel'"):
        pipeline(load_family(str(teacher)), None, PictureSetup(weights=str(teacher)))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", "[]", "cannot load a Vgg from {vgg}: its config.json is not the config of one"),
        ("config.json", '{"classes": 3}', "cannot load a Vgg from {vgg}: its config.json is not the config of one"),
        ("config.json", '{"classes": ["a"]}', "head.bias has shape"),
        ("config.json", "{", "{vgg}/config.json is not valid JSON"),
        ("model.safetensors", "short", "{vgg}/model.safetensors is not a safetensors file, or it is damaged"),
        ("model.safetensors", None, "{vgg}/model.safetensors is not a safetensors file"),
    ],
)
def test_a_vgg_folder_of_something_else_is_refused_by_name(file, content, words, tmp_path):
    vgg = Path(shutil.copytree(Vgg.FOLDER, tmp_path / "vgg"))
    (vgg / file).unlink() if content is None else (vgg / file).write_text(content)
    with pytest.raises(ValueError, match=re.escape(words.format(vgg=vgg))):
        load_vgg(str(vgg))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers_per_block": 10**9}, "config.json: layers_per_block must be numbers from 0 to 64"),
        ({"block_out_channels": "wide"}, "config.json: block_out_channels must list the widths"),
        ({"conditioning_embedding_out_channels": 3}, "cannot load the ControlNet {control}: "),
        ([], "config.json is not a model's config"),
        ("NaN", "the ControlNet {control}: controlnet_mid_block.bias holds NaN or infinite numbers"),
    ],
    ids=str,
)
def test_a_damaged_controlnet_is_refused_by_name(change, words, tmp_path):
    unet = make_unet(**SMALL)
    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
    if change == "NaN":
        torch.nn.init.constant_(control.controlnet_mid_block.bias, float("nan"))
    control.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    if change != "NaN":
        file.write_text(json.dumps(json.loads(file.read_text()) | change if change else change))
    settings = GenerateSettings(control=str(tmp_path))
    with pytest.raises(ValueError, match=re.escape(words.format(control=tmp_path))) as caught:
        drawing._controlnet(SimpleNamespace(unet=unet), TINY_FAMILY, settings, None)
    assert str(tmp_path) in str(caught.value)


# ---------------------------------------------------------------------------------------------- more than a caption

CANNOT_TRAIN = [
    ("asdm", "distill", "bk_sdm_tiny", "--steps", "2", "-o", "out", "--teacher"),
    ("asdm", "distill", "bk_sdm_tiny", "--steps", "2", "--dry-run", "-o", "out", "--teacher"),
    ("asdm-prof", "search", "--budget", "0.8", "--data", "emoji", "-o", "out"),
    ("asdm-prof", "sensitivity", "--data", "emoji", "-o", "out.json"),
]
CANNOT_DRAW = [
    ("asdm", "generate", "a heart", "-o", "out.png", "--family"),
    ("asdm", "bench", "--student", "bk_sdm_tiny", "--quality", "-o", "out.json", "--teacher"),
]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"in_channels": 9}, "also takes an image beside the latents (in_channels 9)"),
        ({"in_channels": 8}, "also takes an image beside the latents (in_channels 8)"),
        ({"time_cond_proj_dim": 256}, "also takes a guidance embedding (time_cond_proj_dim 256)"),
    ],
    ids=["inpainting", "InstructPix2Pix", "LCM"],
)
def test_a_teacher_that_takes_more_than_a_caption_is_refused_before_it_is_loaded(change, words, run, tmp_path):
    """Its weights are no weights, so loading them would be another error."""
    teacher = Path(shutil.copytree(PIPELINE, tmp_path / "teacher"))
    config = json.loads((teacher / "unet" / "config.json").read_text())
    (teacher / "unet" / "config.json").write_text(json.dumps(config | change))
    (teacher / "unet" / UNET.name).write_bytes(b"nothing that could be loaded")
    drawing = CANNOT_DRAW if "in_channels" in change else []  # a pipeline embeds LCM's guidance by itself
    for command in (*CANNOT_TRAIN, *drawing):
        refused(run(*command, teacher), "supports UNets conditioned on a caption alone", words)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [("FlowMatchEulerDiscreteScheduler", "matches flows"), ("EDMDPMSolverMultistepScheduler", "is EDM's")],
)
def test_a_scheduler_of_another_kind_is_refused_before_anything_is_loaded(run, tmp_path, kind, words):
    teacher = Path(shutil.copytree(PIPELINE, tmp_path / "flow"))
    scheduler = {"_class_name": kind, "num_train_timesteps": 1000}
    (teacher / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    for command in (*CANNOT_TRAIN, CANNOT_DRAW[0]):
        refused(run(*command, teacher), "supports epsilon and v_prediction; the scheduler of", words)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "lacks tokenizer, which its model_index.json names"),
        (lambda folder: (folder / "model_index.json").write_text("[]"), "is not a pipeline's index"),
        (
            lambda folder: (folder / "model_index.json").write_text(json.dumps({"9" * 300: ["torch", "Module"]})),
            "lacks 999",
        ),
    ],
)
def test_a_pipeline_that_lacks_a_part_is_refused(spoil, words, run, tmp_path):
    spoil(Path(shutil.copytree(PIPELINE, tmp_path / "teacher")))
    refused(run("asdm", "generate", "a heart", "-o", "out.png", "--family", tmp_path / "teacher"), words)
