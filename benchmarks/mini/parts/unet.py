"""The UNet, with Stable Diffusion 1.5's block types and 38 units, and the text tower that is trained with it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asdm.data.datasets import emoji
from asdm.models.families._parts import STABLE_DIFFUSION_UNET
from benchmarks.mini import latents
from benchmarks.mini.parts import to_half
from benchmarks.mini.parts.clip import save_vocabulary, tokenize
from benchmarks.mini.training import LossTerms, TrainingTask

CONFIG: dict[str, Any] = STABLE_DIFFUSION_UNET | {
    "sample_size": emoji.SIZE // 4,
    "block_out_channels": [32, 64, 128, 128],
    "cross_attention_dim": 128,
    "attention_head_dim": 2,  # diffusers means the number of heads
    "norm_num_groups": 8,
}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
FOLDER = "weights"
CAPTION_DROPOUT = 0.1
MIN_SNR = 5.0  # γ of Min-SNR
PICTURES = 1_600_000
LAST_SHARE = 1 / 6  # of the pictures are seen at full size: a third of the time
LAST_COST = 2.5  # of a picture at full size in small ones, by multiply-adds


def training_task(
    pictures: int, folder: Path, batch: int = 64, device: str = "cpu", compiled: bool = False, workers: int = 1
) -> TrainingTask:
    """Denoise the latents of the training drawings, small ones first, conditioned on their captions."""
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizerFast

    data = latents.load(folder)
    words = CLIPTokenizerFast.from_pretrained(folder / "clip")
    spellings = [variant for caption in data.captions for variant in caption_variants(caption)]
    tokens, no_caption = tokenize(words, spellings).view(len(data.captions), 2, -1), tokenize(words, [""])
    alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel.from_config(CONFIG).to(memory_format=torch.channels_last)
    bf16 = has_fast_bf16(device)
    if bf16 and device == "cpu":
        suit_bf16(unet)
    text: Any = CLIPTextModel.from_pretrained(folder / "clip").float()
    module = nn.ModuleDict({"unet": unet, "text_encoder": text}).to(device).train()
    predict = torch.compile(unet, dynamic=False) if compiled else unet

    def loss(encoded: torch.Tensor, indices: torch.Tensor, generator: torch.Generator) -> LossTerms:
        b = len(indices)
        mirrored, spelling = (torch.randint(2, (b,), generator=generator) for _ in range(2))
        dropped = torch.rand(b, 1, generator=generator) < CAPTION_DROPOUT
        t = torch.randint(1000, (b,), generator=generator)
        noise = torch.randn(b, *encoded.shape[2:], generator=generator)
        x, a = encoded[indices, mirrored], alphas[t].view(b, 1, 1, 1)
        noisy, v = a.sqrt() * x + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x
        snr = (a / (1 - a)).flatten()
        weight = snr.clamp(max=MIN_SNR) / (snr + 1)
        prompts = torch.where(dropped, no_caption, tokens[indices, spelling])
        noisy, v, t, weight, prompts = (tensor.to(device) for tensor in (noisy, v, t, weight, prompts))
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            predicted = predict(noisy, t, text(prompts).last_hidden_state, return_dict=False)[0]
        error = (predicted.float() - v).square().mean((1, 2, 3))
        return {"loss": (weight * error).mean(), "mse": error.mean()}

    return TrainingTask(
        "unet", module, len(data.captions), partial(loss, data.small), pictures, batch,
        learning_rate=3e-3 * (batch / 64) ** 0.5, average_over=64_000, workers=workers, by_muon=is_hidden,
        last_loss=partial(loss, data.full), last_pictures=round(LAST_SHARE * pictures), last_cost=LAST_COST,
    )  # fmt: skip


def is_hidden(name: str, weight: nn.Parameter) -> bool:
    """Whether Muon trains a weight: all matrices and kernels but the first, the last and embeddings.

    After 30,000 pictures of short trials, the loss was 0.058 with it, and 0.073 with AdamW at 1e-3; AdamW needed 1.8
    times as many pictures for the same loss.
    """
    outer = name.startswith(("unet.conv_in", "unet.conv_out")) or "embedding" in name
    return weight.dim() >= 2 and not outer


def has_fast_bf16(device: str) -> bool:
    """Whether bf16 pays: on a GPU, and on a CPU with instructions for it."""
    return device != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def suit_bf16(unet: nn.Module) -> None:
    """Replace what a CPU under autocast to bf16 does slowly: GroupNorm, and attention's backward pass.

    With it, the UNet trains 1.4 times as fast as in fp32; without it, no faster.
    """
    unet.set_attn_processor(PlainAttention())
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


class PlainAttention:
    """An attention processor: two products of matrices and a softmax, all in the dtype of the projections."""

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, **_: Any
    ) -> torch.Tensor:
        """(b, n, c) from (b, n, c) and, where it is cross-attention, a context (b, m, d)."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projected = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in projected)  # (b, heads, n, c / heads)
        with torch.autocast("cpu", enabled=False):
            attended = ((q * attn.scale) @ k.transpose(-1, -2)).softmax(-1) @ v
        return attn.to_out[0](attended.transpose(1, 2).flatten(2))


def caption_variants(caption: str) -> tuple[str, str]:
    """A caption without and with its article: "red heart, …", "a red heart, …"."""
    return caption, f"{'an' if caption[0] in 'aeiouAEIOU' else 'a'} {caption}"


def ship(module: Any, folder: Path) -> None:
    """UNet, text encoder and scheduler, with the VAE and the tokenizer that are beside the folder."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizerFast

    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder.parent / "vae", torch_dtype=torch.float16),
        text_encoder=to_half(module["text_encoder"]),
        tokenizer=CLIPTokenizerFast.from_pretrained(folder.parent / "clip"),
        unet=to_half(module["unet"]),
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    save_vocabulary(pipeline.tokenizer, folder / "tokenizer")
