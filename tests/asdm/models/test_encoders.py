"""LoRA, VAE, clip skip and textual inversions change a pipeline as their own mathematics say."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from asdm.mini import PIPELINE
from asdm.models import encoders, ldm_names, lora
from asdm.models.families import load_family
from asdm.models.loading import load_unet
from asdm.models.pipeline import pipeline
from asdm.models.settings import PictureSetup
from asdm.models.sources import resolve
from tests import single_files
from tests.tiny import SMALLEST, make_unet

MINI = load_family("mini")
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
QUERY_ = QUERY.replace(".", "_")
TEXT = "text_model.encoder.layers.1.self_attn.q_proj"


def mini(**setup):
    """The mini's pipeline without its UNet."""
    family, weights = resolve("mini", PictureSetup(**setup))
    return pipeline(family, None, PictureSetup(**setup | {"weights": weights}))


def states(pipe, caption="a red heart"):
    return pipe.encode_prompt(caption, "cpu", 1, False)[0]


def text_of(pipe):
    return getattr(pipe.text_encoder, "text_model", pipe.text_encoder)


# ---------------------------------------------------------------------------------------------- LoRA


@pytest.fixture(scope="module")
def kohya(tmp_path_factory):
    """A LoRA in kohya's names of rank 2 and alpha 1: a UNet's query and convolution, and a text encoder's query."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    shapes = {f"unet_{QUERY}": (32, 32), "unet_down_blocks.0.resnets.0.conv1": (32, 32, 3, 3), f"te_{TEXT}": (128, 128)}
    for name, (out, inside, *kernel) in shapes.items():
        stem = f"lora_{name.replace('.', '_')}"
        weights[f"{stem}.lora_down.weight"] = torch.randn(2, inside, *kernel, generator=generator)
        weights[f"{stem}.lora_up.weight"] = torch.randn(out, 2, *([1] * len(kernel)), generator=generator)
        weights[f"{stem}.alpha"] = torch.tensor(1.0)
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    save_file(weights, path)
    return path


def product(path, stem):
    """scale α / rank · B·A of a pair."""
    weights = load_file(path)
    up, down = (weights[f"lora_{stem.replace('.', '_')}.lora_{side}.weight"] for side in ("up", "down"))
    return 0.5 * (up.flatten(1) @ down.flatten(1)).view(-1, *down.shape[1:])


def test_a_lora_is_added_to_the_unets_weights(kohya):
    plain = make_unet(**SMALLEST)
    fused = make_unet(**SMALLEST)
    lora.fuse_into_unet(fused, [f"{kohya}:0.8", str(kohya)])
    changed = {name for name, tensor in plain.state_dict().items() if not torch.equal(tensor, fused.state_dict()[name])}
    assert changed == {f"{QUERY}.weight", "down_blocks.0.resnets.0.conv1.weight"}
    for name in changed:
        expected = plain.state_dict()[name] + 1.8 * product(kohya, f"unet_{name.removesuffix('.weight')}")
        torch.testing.assert_close(fused.state_dict()[name], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("facts", "scale"),
    [
        ({"unet.r": 4, "unet.lora_alpha": 1}, 0.25),
        ({"unet.r": 4, "unet.lora_alpha": 1, "unet.alpha_pattern": {"attn1.to_q": 2}}, 0.5),
        ({"unet.r": 4, "unet.lora_alpha": 1, "unet.use_rslora": True}, 0.5),
        ({"text_encoder.r": 4, "text_encoder.lora_alpha": 1}, 1.0),
    ],
)
def test_alphas_may_stand_in_the_metadata(facts, scale, tmp_path):
    """As `save_lora_weights` of diffusers writes them."""
    down, up = torch.ones(4, 32), torch.ones(32, 4)
    pair = {f"unet.{QUERY}.lora_A.weight": down, f"unet.{QUERY}.lora_B.weight": up}
    save_file(pair, tmp_path / "style.safetensors", {"lora_adapter_metadata": json.dumps(facts)})
    unet = make_unet(**SMALLEST)
    before = unet.get_submodule(QUERY).weight.clone()
    lora.fuse_into_unet(unet, [str(tmp_path / "style.safetensors")])
    torch.testing.assert_close(unet.get_submodule(QUERY).weight - before, scale * up @ down)
    save_file(pair, tmp_path / "style.safetensors", {"lora_adapter_metadata": '{"unet.lora_alpha": []}'})
    with pytest.raises(ValueError, match=r"the lora_adapter_metadata of .* is damaged; take it out"):
        lora.fuse_into_unet(unet, [str(tmp_path / "style.safetensors")])


def test_a_lora_is_added_to_the_text_encoder_and_to_what_is_built(kohya):
    weights = [dict(text_of(mini(lora=files)).named_parameters()) for files in (None, [str(kohya)])]
    name = f"{TEXT.removeprefix('text_model.')}.weight"
    torch.testing.assert_close(weights[1][name] - weights[0][name], product(kohya, f"te_{TEXT}"), rtol=1e-3, atol=1e-4)
    others = [n for n in weights[0] if n != name]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in others)
    unet = load_unet(MINI, str(PIPELINE), lora=[str(kohya)]).get_submodule(QUERY).weight
    own = load_file(PIPELINE / "unet" / "diffusion_pytorch_model.safetensors")[f"{QUERY}.weight"].float()
    torch.testing.assert_close(unet - own, product(kohya, f"unet_{QUERY}"), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("gone.safetensors", "the LoRA gone.safetensors does not exist"),
        *(
            (f"style.safetensors:{scale}", f"must be a finite number, as in FILE:0.8, got 'style.safetensors:{scale}'")
            for scale in ("much", "nan", "-inf")
        ),
        ("style.pt", "style.pt is a pickle"),
        ("loha.safetensors", "loha.safetensors is a LoHa, which cannot be fused"),
        ("dora.safetensors", "dora.safetensors is a DoRA, which cannot be fused"),
        ("tucker.safetensors", "tucker.safetensors is a LoCon of three matrices (Tucker), which cannot be fused"),
        ("full.safetensors", "full.safetensors is a full difference, which cannot be fused"),
        ("wide.safetensors", "wide.safetensors was made for another model"),
        ("unet.safetensors", "unet.safetensors is not a LoRA"),
        ("nan.safetensors", f"cannot load the LoRA nan.safetensors: lora_unet_{QUERY_}.alpha holds NaN or infinite"),
        ("ranks.safetensors", "ranks.safetensors was made for another model"),
        ("alphas.safetensors", "alphas.safetensors is not a LoRA that diffusers can read"),
        ("large.safetensors:1e38", "holds NaN or infinite numbers once it is added at scale 1e+38"),
    ],
)
def test_what_cannot_be_fused_is_named(spec, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("style.safetensors", "style.pt"):
        (tmp_path / name).touch()
    stem = f"lora_unet_{QUERY.replace('.', '_')}"
    save_file({f"{stem}.hada_w1_a": torch.zeros(2)}, "loha.safetensors")
    for file, name in (("dora", "unet.a.lora_magnitude_vector"), ("tucker", f"{stem}.lora_mid.weight"),
                       ("full", f"{stem}.diff")):  # fmt: skip
        save_file({name: torch.zeros(2)}, f"{file}.safetensors")
    wide = {"down": torch.zeros(2, 64), "up": torch.zeros(32, 2)}
    save_file({f"{stem}.lora_{side}.weight": tensor for side, tensor in wide.items()}, "wide.safetensors")
    save_file({"conv_in.bias": torch.zeros(2)}, "unet.safetensors")
    pair = {"lora_down.weight": torch.ones(2, 32), "lora_up.weight": torch.ones(32, 2)}
    for name, change in {
        "nan": {"alpha": torch.tensor(float("nan"))},
        "ranks": {"lora_up.weight": torch.ones(32, 3)},
        "alphas": {"alpha": torch.ones(2)},
        "large": {"lora_up.weight": torch.full((32, 2), 9.0)},
    }.items():
        save_file({f"{stem}.{key}": tensor for key, tensor in (pair | change).items()}, f"{name}.safetensors")
    with pytest.raises(ValueError, match=re.escape(words)):
        lora.fuse_into_unet(make_unet(**SMALLEST), [spec])


# ---------------------------------------------------------------------------------------------- encoders


def test_clip_skip_normalises_an_earlier_layers_output():
    pipe = mini()
    ids = pipe.tokenizer("a red heart", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        layers = pipe.text_encoder(ids, output_hidden_states=True).hidden_states
        expected = text_of(pipe).final_layer_norm(layers[-2])
    torch.testing.assert_close(states(mini(clip_skip=2)), expected)
    assert not torch.equal(states(pipe), expected)
    assert torch.equal(states(mini(clip_skip=1)), states(pipe))
    with pytest.raises(ValueError, match="--clip-skip must be between 1 and the text encoder's 2 layers, got 3"):
        mini(clip_skip=3)


def with_former_names(vae):
    """A VAE's tensors as diffusers called them when Stable Diffusion 1 was published."""
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name):
        for now, then in former.items():
            name = name.replace(f".attentions.0.{now}.", f".attentions.0.{then}.")
        return name

    return {renamed(name): tensor for name, tensor in vae.items()}


def test_a_single_file_has_ldms_names_of_a_vae_in_its_former_ones(tmp_path):
    tensors = load_file(PIPELINE / "vae" / "diffusion_pytorch_model.safetensors")
    former = with_former_names(tensors)
    assert former.keys() != tensors.keys()
    assert ldm_names.vae_tensors(former).keys() == ldm_names.vae_tensors(tensors).keys()


def test_a_vae_comes_from_a_folder_or_a_file_in_either_naming(tmp_path):
    folder = shutil.copytree(PIPELINE / "vae", tmp_path / "vae")
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    other = {name: tensor * 0.5 for name, tensor in weights.items()}
    save_file(other, folder / "diffusion_pytorch_model.safetensors")
    ldm = {single_files.vae_name(name, blocks=3): tensor for name, tensor in other.items()}
    for name in list(ldm):
        if "mid.attn_1" in name and ldm[name].dim() == 2:
            ldm[name] = ldm[name][:, :, None, None]
    plain = single_files.write(other, tmp_path / "plain.safetensors")
    former = single_files.write(with_former_names(other), tmp_path / "former.safetensors")
    for vae in (folder, plain, former, single_files.write(ldm, tmp_path / "ldm.safetensors")):
        own = mini(vae=str(vae)).vae.state_dict()
        assert all(torch.equal(own[name], tensor.float()) for name, tensor in other.items())


def test_a_vae_of_other_channels_is_refused():
    family = replace(MINI, unet=MINI.unet | {"out_channels": 8})
    with pytest.raises(ValueError, match="has 4 latent channels; mini's UNet has 8"):
        encoders.load_vae(str(PIPELINE), family, PictureSetup())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("NaN", "cannot load the VAE of {vae}: decoder.conv_in.bias holds NaN or infinite numbers"),
        ([], "{vae}/config.json is not the config of a VAE: it holds no JSON object"),
        ({"latent_channels": "four"}, "{vae}: the VAE's latent_channels must be a number of at least 1, got 'four'"),
        ({"layers_per_block": 2000}, "{vae}: the VAE's layers_per_block must be at most 64, got 2000"),
        ("nothing", "cannot load the VAE of {vae}: 1 weights are missing, such as decoder.conv_in.bias"),
        ({"act_fn": [1]}, "cannot load the VAE of {vae}: "),
        ({"down_block_types": ["NoBlock"] * 3}, "cannot load the VAE of {vae}: "),
    ],
    ids=str,
)
def test_a_damaged_vae_is_refused_by_name(change, words, tmp_path):
    vae = shutil.copytree(PIPELINE / "vae", tmp_path / "vae")
    file, config = vae / "diffusion_pytorch_model.safetensors", vae / "config.json"
    if isinstance(change, str):
        tensors = load_file(file)
        bias = tensors.pop("decoder.conv_in.bias")
        tensors |= {"decoder.conv_in.bias": bias * float("nan")} if change == "NaN" else {}
        save_file(tensors, file)
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | change if change else change))
    with pytest.raises(ValueError, match=re.escape(words.format(vae=vae))) as caught:
        encoders.load_vae(str(vae), MINI, PictureSetup())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "is not a textual inversion: it holds no embeddings"),
        ({"emb_params": torch.full((1, 128), float("inf"))}, "emb_params holds NaN or infinite numbers"),
        ({"emb_params": torch.zeros(0, 128)}, "is not a textual inversion for this model"),
        ({"heart": torch.zeros(128)}, "cannot add the textual inversion"),
    ],
    ids=["empty", "infinite", "no rows", "a word that there is"],
)
def test_a_damaged_textual_inversion_is_refused_by_name(tensors, words, tmp_path):
    save_file(tensors, file := tmp_path / "sparkle.safetensors")
    pipe = mini()
    pipe.tokenizer.add_tokens("heart")
    with pytest.raises(ValueError, match=words) as caught:
        encoders.add_tokens(pipe, file)
    assert str(file) in str(caught.value)


def test_a_textual_inversion_that_is_a_pickle_is_not_read(tmp_path):
    (file := tmp_path / "sparkle.pt").write_bytes(b"not read")
    with pytest.raises(ValueError, match=r"sparkle\.pt is a pickle, which can run code"):
        encoders.add_tokens(None, file)


def test_a_textual_inversion_is_a_word_of_its_files_name(tmp_path):
    embedding = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    save_file({"emb_params": embedding}, tmp_path / "sparkle.safetensors")
    pipe = mini(textual_inversion=[str(tmp_path / "sparkle.safetensors")])
    ids = pipe.tokenizer(pipe.maybe_convert_prompt("sparkle", pipe.tokenizer)).input_ids[1:-1]
    torch.testing.assert_close(pipe.text_encoder.get_input_embeddings().weight[ids], embedding)
    assert not torch.equal(states(pipe, "a sparkle heart"), states(pipe, "a heart"))
    save_file({"emb_params": torch.zeros(2, 768)}, tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match=r"its embeddings are \[2, 768\], and the text encoder's are 128 wide"):
        mini(textual_inversion=[str(tmp_path / "wide.safetensors")])


# ---------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoints_text_encoder_and_vae_are_the_folders(tmp_path):
    tensors = single_files.ldm(PIPELINE, blocks=3)
    beside = {
        "ztsnr": torch.zeros(1),
        "cond_stage_model.logit_scale": torch.zeros(1),
        "cond_stage_model.transformer.text_projection.weight": torch.zeros(2, 2),
    }  # as ComfyUI saves them
    file = single_files.write(tensors | beside, tmp_path / "mini.safetensors")
    family, weights = resolve(None, PictureSetup(weights=str(file)), needs="asdm generate")
    of_file, of_folder = pipeline(family, None, PictureSetup(weights=weights)), mini()
    assert torch.equal(states(of_file), states(of_folder))
    theirs = of_folder.vae.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in of_file.vae.state_dict().items())
    assert of_file.scheduler.alphas_cumprod[-1] == 0
    assert of_file.scheduler.config.timestep_spacing == "trailing"
    assert of_folder.scheduler.alphas_cumprod[-1] > 0


def test_the_prediction_type_may_be_named():
    assert mini().scheduler.config.prediction_type == "v_prediction"
    assert mini(prediction_type="epsilon").scheduler.config.prediction_type == "epsilon"


def test_the_minis_folder_loads_in_plain_diffusers_as_it_is():
    pipe = StableDiffusionPipeline.from_pretrained(PIPELINE)
    assert {pipe.text_encoder.dtype, pipe.unet.dtype, pipe.vae.dtype} == {torch.float32}
    pipe("a heart", num_inference_steps=1, height=64, width=64, output_type="latent")
