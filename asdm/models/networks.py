"""Two small networks that ship with the mini: a VGG (perceptual losses) and a judge (evaluation).

Both take RGB pictures (b, 3, h, w) in [-1, 1]. The judge has trained nobody, and the VGG judges nobody.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

SHIPPED = Path(__file__).parents[1] / "mini"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
VGG_CHANNELS = (16, 32, 64, 96)
VGG_DEPTHS = (2, 2, 3, 3)  # as VGG-16 as far as relu4_3


class _Shipped(nn.Module):
    """A network that is kept as config.json and model.safetensors, in fp16."""

    FOLDER: ClassVar[Path]
    config: dict[str, Any]

    @classmethod
    def load(cls, folder: Path | None = None) -> Self:
        """The network of a folder, by default the one that ships; in fp32 and eval mode."""
        folder = folder or cls.FOLDER
        network = cls(**json.loads((folder / "config.json").read_text()))
        network.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
        return network.eval().requires_grad_(False)


class Vgg(_Shipped):
    """A VGG-16 trunk with few channels, trained to tell subcategories of emoji apart."""

    FOLDER = SHIPPED / "vgg"

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.config = {"classes": list(classes)}
        layers: list[nn.Module] = []
        inside, self.taps = 3, {}
        for block, (channels, depth) in enumerate(zip(VGG_CHANNELS, VGG_DEPTHS, strict=True), start=1):
            for i in range(1, depth + 1):
                layers += [nn.Conv2d(inside, channels, 3, padding=1), nn.ReLU()]
                inside = channels
                self.taps[len(layers) - 1] = f"relu{block}_{i}"
            layers.append(nn.MaxPool2d(2))
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(inside, len(classes))

    def features(self, images: torch.Tensor, names: Sequence[str]) -> list[torch.Tensor]:
        """Feature maps (b, c, h, w) of (b, 3, h, w) by VGG's names, such as "relu1_2"."""
        maps = {}
        for i, layer in enumerate(self.trunk):
            images = layer(images)
            maps[self.taps.get(i)] = images
        return [maps[name] for name in names]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores (b, classes)."""
        return self.head(self.trunk(images).mean((2, 3)))


class Judge(_Shipped):
    """Image–text contrast: a residual CNN and a bag of words. Nothing of it is in the CLIP that conditions the UNet."""

    FOLDER = SHIPPED / "judge"
    WIDTHS = (32, 64, 128)

    def __init__(self, words: Sequence[str], width: int = 96) -> None:
        super().__init__()
        self.config = {"words": list(words), "width": width}
        self.index = {word: i + 1 for i, word in enumerate(words)}  # 0 is any other word
        self.stem = nn.Conv2d(3, self.WIDTHS[0], 3, stride=2, padding=1)
        blocks, inside = [], self.WIDTHS[0]
        for channels in self.WIDTHS:
            blocks.append(_Residual(inside, channels, stride=1 if inside == channels else 2))
            inside = channels
        self.blocks = nn.Sequential(*blocks)
        self.to_image = nn.Linear(inside, width)
        self.words = nn.EmbeddingBag(len(words) + 1, width, mode="sum")
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    @staticmethod
    def split(caption: str) -> list[str]:
        """Lower-case words of a caption."""
        return re.findall(r"[\w’'-]+", caption.lower())

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features (b, 128), for Fréchet and kernel distances."""
        return self.blocks(F.relu(self.stem(images))).mean((2, 3))

    def image_embedding(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors (b, width)."""
        return F.normalize(self.to_image(self.features(images)), dim=-1)

    def text_embedding(self, captions: Sequence[str]) -> torch.Tensor:
        """Unit vectors (n, width)."""
        tokens = [[self.index.get(word, 0) for word in self.split(caption)] or [0] for caption in captions]
        offsets = torch.tensor([0, *(len(t) for t in tokens[:-1])]).cumsum(0)
        flat = torch.tensor([i for t in tokens for i in t])
        device = self.log_scale.device
        return F.normalize(self.words(flat.to(device), offsets.to(device)), dim=-1)


class ClipJudge:
    """A transformers CLIP as a judge: `source` is its folder or hub id. Any size of picture goes in."""

    def __init__(self, source: str) -> None:
        from transformers import AutoTokenizer, CLIPModel

        try:
            self.clip: Any = CLIPModel.from_pretrained(source, torch_dtype=torch.float32).eval()
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0].rstrip(".")
            raise ValueError(f"cannot load a CLIP from {source}: {first}.") from None
        self.side = self.clip.config.vision_config.image_size
        self.tokens = self.clip.config.text_config.max_position_embeddings

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Projected image features (b, d), for Fréchet and kernel distances."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        pixels = F.interpolate(images, (self.side, self.side), mode="bicubic", antialias=True).clamp(-1, 1)
        pooled = self.clip.vision_model(pixel_values=((pixels + 1) / 2 - mean) / std).pooler_output
        return self.clip.visual_projection(pooled)

    def image_embedding(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors (b, d)."""
        return F.normalize(self.features(images), dim=-1)

    @torch.inference_mode()
    def text_embedding(self, captions: Sequence[str]) -> torch.Tensor:
        """Unit vectors (n, d)."""
        tokens = self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self.tokens, return_tensors="pt"
        )
        read = self.clip.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return F.normalize(self.clip.text_projection(read), dim=-1)


class _Residual(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inside), nn.GroupNorm(8, outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.skip = nn.Conv2d(inside, outside, 1, stride=stride) if inside != outside else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.skip(x) + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
