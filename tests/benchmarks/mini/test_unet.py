"""The UNet's data and training: small drawings first, the same bits after a stop, one file for another machine."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from asdm.data.datasets import emoji
from asdm.mini import PIPELINE
from asdm.models.families import load_family
from benchmarks.mini import latents, shares, training
from benchmarks.mini.__main__ import app
from benchmarks.mini.parts import SMALL, unet

MINI = PIPELINE.parent
TINY = unet.CONFIG | {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4}


def say_nothing(*_) -> None:
    pass


def few_drawings(*splits: str, size: int) -> emoji.Emoji:
    """Eight pictures of noise, each with its mirror image."""
    pixels = torch.randint(256, (8, 3, size, size), generator=torch.Generator().manual_seed(size), dtype=torch.uint8)
    names = tuple(f"thing {i}" for i in range(8))
    return emoji.Emoji(pixels, names, ("twemoji", "openmoji") * 4, ("Objects",) * 8, ("tool",) * 8)


@pytest.fixture
def encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a trained VAE and CLIP, and few drawings to encode."""
    for part, where in (("vae", MINI / "weights" / "vae"), ("clip", MINI / "clip")):
        (tmp_path / part).symlink_to(where)
    monkeypatch.setattr(latents, "load_drawings", few_drawings)
    monkeypatch.setattr(unet, "CONFIG", TINY)
    return tmp_path


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_it_resumes_with_the_same_bits_and_sees_small_pictures_first(encoders: Path):
    latents.encode(encoders, say_nothing)
    sizes = []
    task = unet.training_task(24, encoders, batch=4)
    task.module["unet"].register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[-1]))
    whole = training.train(task, encoders / "whole", say_nothing)
    assert sizes == [16] * 5 + [24]
    for stop_at in (8, None):
        parts = training.train(
            unet.training_task(24, encoders, batch=4), encoders / "parts", say_nothing, stop_at=stop_at
        )
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    unet.ship(parts, encoders / unet.FOLDER)
    assert load_family(str(encoders / unet.FOLDER)).size == emoji.SIZE


def test_the_suited_network_computes_the_same_and_its_training_is_close(encoders: Path):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    plain = UNet2DConditionModel.from_config(TINY)
    suited = copy.deepcopy(plain)
    unet.suit_bf16(suited)
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 16, 128)
    with torch.no_grad():
        expected, got = plain(*inputs).sample, suited(*inputs).sample
        with torch.autocast("cpu", torch.bfloat16):
            half = suited(*inputs).sample
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert (half.float() - expected).norm() < 0.03 * expected.norm()


def test_latents_are_made_once_and_need_no_drawings_afterwards(encoders: Path, monkeypatch: pytest.MonkeyPatch):
    data = latents.encode(encoders, say_nothing)
    assert data.small.shape == (8, 2, 4, 16, 16)
    assert data.full.shape == (8, 2, 4, 24, 24)
    assert data.captions[:2] == ("thing 0, twemoji style", "thing 1, openmoji style")
    monkeypatch.setattr(latents, "load_drawings", None)
    assert torch.equal(latents.encode(encoders, say_nothing).full, data.full)


def test_other_vaes_latents_are_refused(encoders: Path):
    with pytest.raises(ValueError, match=r"latents.safetensors does not exist; python -m benchmarks.mini vae clip"):
        latents.load(encoders)
    latents.encode(encoders, say_nothing)
    (encoders / "vae").unlink()
    (encoders / "vae").mkdir()
    (encoders / latents.VAE).write_bytes(b"another")
    with pytest.raises(ValueError, match="was encoded by another VAE"):
        latents.load(encoders)


@pytest.mark.parametrize(
    ("name", "kind", "may"),
    [
        ("first quarter moon", "sky & weather", False),
        ("left-facing fist", "hand-fingers-closed", False),
        ("globe showing Americas", "place-map", False),
        ("red heart", "heart", True),
    ],
)
def test_only_what_keeps_its_name_is_mirrored(name: str, kind: str, may: bool):
    assert latents.may_be_mirrored(name, kind) is may


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vae", "unet", "--batch", "32"], "--batch is for unet alone, not for vae unet"),
        (["unet", "--device", "cuda:9"], "device 'cuda:9' is not available; choose from cpu"),
        (["unet"], "latents.safetensors does not exist; python -m benchmarks.mini vae clip latents makes it"),
        (
            ["latents"],
            "diffusion_pytorch_model.safetensors does not exist; train it with python -m benchmarks.mini vae",
        ),
        (["decoder"], "unknown name 'decoder' in parts; choose from clip, judge, unet, vae, vgg"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_sentence(arguments: list[str], message: str, tmp_path: Path):
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path)])
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)


def test_its_levels_have_stable_diffusions_shares():
    small, full = (shares.count_shares(load_family("mini"), size) for size in (SMALL, emoji.SIZE))
    top = "down_blocks.0 + up_blocks.3"
    assert 8e6 <= full.parameters <= 11.5e6
    assert all(0.34 <= counted.macs_share[top] <= 0.48 for counted in (small, full))
    assert pytest.approx(full.macs / small.macs, rel=0.02) == unet.LAST_COST
