"""The CLIP: its own byte-pair tokenizer, a text tower that conditions the UNet, and a small vision transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from asdm.mini import PIPELINE
from asdm.models.pipeline import byte_tokenizer
from benchmarks.mini.stages import half, seen, shaken
from benchmarks.mini.training import Stage, Terms

TOKENS = 16
VOCABULARY = 1280
WIDTH = 128
DEFAULT_STEPS = 400
KEPT = PIPELINE.parent / "clip"


def tokenizer() -> Any:
    """The byte pairs that ship, in CLIPTokenizer's format.

    They are learned once and kept: which of equally frequent pairs is merged first falls by chance, and a CLIP knows
    its words by their numbers.
    """
    from transformers import CLIPTokenizerFast

    return CLIPTokenizerFast.from_pretrained(KEPT) if KEPT.is_dir() else learned_tokenizer()


def learned_tokenizer() -> Any:
    """Byte pairs of the captions that are not held out; every call may number them otherwise."""
    captions = sorted(set(seen("train", "others").captions))
    made = byte_tokenizer(TOKENS).train_new_from_iterator(captions, VOCABULARY)
    made.model_max_length = TOKENS
    return made


def tokens_of(tokenizer: Any, captions: list[str]) -> torch.Tensor:
    """Token ids (n, 16), padded as Stable Diffusion pads."""
    return tokenizer(captions, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt").input_ids


def config(tokenizer: Any) -> Any:
    """transformers' config of both towers."""
    from transformers import CLIPConfig

    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": TOKENS,
        } | {f"{name}_token_id": i for name, i in ids.items()},
        vision_config={
            "hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": 64, "patch_size": 8,
        },
        projection_dim=96,
    )  # fmt: skip


def stage(steps: int, folder: Path) -> Stage:
    """Tell which caption goes with which drawing; nothing held out is seen."""
    from transformers import CLIPModel

    data = seen("train", "others")
    images, words = data.images(), tokenizer()
    tokens = tokens_of(words, list(data.captions))
    torch.manual_seed(0)
    clip: Any = CLIPModel(config(words))

    def loss(indices: torch.Tensor, generator: torch.Generator) -> Terms:
        shown = shaken(images[indices], generator)
        scores = clip(input_ids=tokens[indices], pixel_values=shown).logits_per_image  # (b, b)
        right = torch.arange(len(indices))
        both = (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2
        return {"loss": both, "right": (scores.argmax(1) == right).float().mean()}

    return Stage("clip", clip, len(images), loss, steps, batch=128, learning_rate=1e-3)


def ship(clip: Any, folder: Path) -> None:
    """CLIP and tokenizer, as transformers keeps them."""
    half(clip).save_pretrained(folder)
    words = tokenizer()
    words.save_pretrained(folder)
    save_vocabulary(words, folder)


def save_vocabulary(tokenizer: Any, folder: Path) -> None:
    """Write vocab.json and merges.txt, which transformers 4 and 5 both load, in place of tokenizer.json."""
    tokenizer.backend_tokenizer.model.save(str(folder))
    (folder / "tokenizer.json").unlink(missing_ok=True)
