"""The CLIP: its own byte-pair tokenizer, a text tower that conditions the UNet, and a small vision transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from asdm.mini import PIPELINE
from asdm.models.pipeline import byte_tokenizer
from benchmarks.mini.parts import augment, load_drawings, to_half
from benchmarks.mini.training import LossTerms, TrainingTask

TOKENS = 16
VOCABULARY = 1280
WIDTH = 128
PICTURES = 51_200
FOLDER = "clip"
SHIPPED = PIPELINE.parent / FOLDER


def tokenizer() -> Any:
    """The tokenizer that ships.

    It is trained once and kept: the order in which equally frequent pairs are merged is not deterministic, and a CLIP
    depends on the ids of its tokens.
    """
    from transformers import CLIPTokenizerFast

    return CLIPTokenizerFast.from_pretrained(SHIPPED) if SHIPPED.is_dir() else train_tokenizer()


def train_tokenizer() -> Any:
    """Byte pairs of the captions that are not held out; ids may differ from call to call."""
    captions = sorted(set(load_drawings("train", "others").captions))
    trained = byte_tokenizer(TOKENS).train_new_from_iterator(captions, VOCABULARY)
    trained.model_max_length = TOKENS
    return trained


def tokenize(tokenizer: Any, captions: list[str]) -> torch.Tensor:
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


def training_task(pictures: int, folder: Path) -> TrainingTask:
    """Match captions and drawings, without held-out ones."""
    from transformers import CLIPModel

    data = load_drawings("train", "others")
    images, words = data.images(), tokenizer()
    tokens = tokenize(words, list(data.captions))
    torch.manual_seed(0)
    clip: Any = CLIPModel(config(words))

    def loss(indices: torch.Tensor, generator: torch.Generator) -> LossTerms:
        shaken = augment(images[indices], generator)
        scores = clip(input_ids=tokens[indices], pixel_values=shaken).logits_per_image  # (b, b)
        labels = torch.arange(len(indices))
        total = (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2
        return {"loss": total, "right": (scores.argmax(1) == labels).float().mean()}

    return TrainingTask("clip", clip, len(images), loss, pictures, batch=128, learning_rate=1e-3, average_over=40_000)


def ship(clip: Any, folder: Path) -> None:
    """CLIP and tokenizer in transformers' format."""
    to_half(clip).save_pretrained(folder)
    words = tokenizer()
    words.save_pretrained(folder)
    save_vocabulary(words, folder)


def save_vocabulary(tokenizer: Any, folder: Path) -> None:
    """Write vocab.json and merges.txt, which transformers 4 and 5 both load, in place of tokenizer.json."""
    tokenizer.backend_tokenizer.model.save(str(folder))
    (folder / "tokenizer.json").unlink(missing_ok=True)
