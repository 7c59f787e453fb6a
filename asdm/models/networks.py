"""Two small networks that ship with the mini: a VGG (perceptual losses) and a judge (evaluation).

Both take RGB pictures (b, 3, h, w) in [-1, 1] and were trained on 64-pixel ones. The judge is never used
as a training loss, nor the VGG as a metric.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import nn

from asdm.models import checkpoints, part_configs
from asdm.unet.config import is_count
from asdm.utils import console
from asdm.utils.record import read_json

SHIPPED = Path(__file__).parents[1] / "mini"
TEXTS_AT_ONCE = 256
VGG_CHANNELS = (16, 32, 64, 96)
VGG_DEPTHS = (2, 2, 3, 3)  # as VGG-16 as far as relu4_3


class _Shipped(nn.Module):
    """A network that is kept as config.json and model.safetensors, in fp16."""

    FOLDER: ClassVar[Path]
    config: dict[str, Any]

    @classmethod
    def load(cls, folder: Path | None = None) -> Self:
        """The network of a folder, by default the one that ships; in fp32 and eval mode.

        Raises ValueError in one sentence for a folder that holds another network, or a damaged one.
        """
        folder = folder or cls.FOLDER
        config, what = read_json(folder / "config.json"), f"a {cls.__name__} from {folder}"
        if not isinstance(config, dict) or not cls._is_own(config):
            raise ValueError(f"cannot load {what}: its config.json is not the config of one.")
        tensors = {k: v.float() for k, v in checkpoints.read_tensors(folder / "model.safetensors").items()}
        network = cls(**config)
        own, given = ({k: tuple(v.shape) for k, v in some.items()} for some in (network.state_dict(), tensors))
        checkpoints.check_shapes(own, given, what)
        checkpoints.check_finite(tensors, what)
        network.load_state_dict(tensors)
        return network.eval().requires_grad_(False)

    @staticmethod
    def _is_own(config: dict[str, Any]) -> bool:
        """Whether a config has this network's settings alone."""
        raise NotImplementedError


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(word, str) for word in value)


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

    @staticmethod
    def _is_own(config: dict[str, Any]) -> bool:
        return config.keys() == {"classes"} and _are_words(config["classes"])

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
    """Image–text contrast: a residual CNN and a bag of words. Nothing of it is in the CLIP that conditions the UNet.

    It looks at pictures of `SIZE` pixels; others are scaled.
    """

    FOLDER = SHIPPED / "judge"
    WIDTHS = (32, 64, 128)
    SIZE = 64

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
    def _is_own(config: dict[str, Any]) -> bool:
        words = _are_words(config.get("words"))
        return words and config.keys() <= {"words", "width"} and is_count(config.get("width", 96))

    @staticmethod
    def split(caption: str) -> list[str]:
        """Lower-case words of a caption."""
        return re.findall(r"[\w’'-]+", caption.lower())

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features (b, 128), for Fréchet and kernel distances."""
        return self.blocks(F.relu(self.stem(self.scaled(images)))).mean((2, 3))

    def scaled(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures of `SIZE` pixels as they are, and others scaled to it."""
        size = (self.SIZE, self.SIZE)
        if images.shape[-2:] == size:
            return images
        return F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)

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
    """A transformers CLIP as a judge: `source` is its folder or hub id. Any size of picture goes in.

    Pictures are rounded to 8 bits and go through CLIP's own processor, so that scores are those of torchmetrics.
    Captions that are longer than the text encoder reads are cut, which a message says.
    """

    def __init__(self, source: str, local_files_only: bool = False) -> None:
        from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

        more: dict[str, Any] = {"local_files_only": local_files_only}
        if Path(source).is_dir():
            checkpoints.weight_files(Path(source))  # says what is there where there are none, such as a pickle
            check_clip_config(Path(source) / "config.json")
        try:
            config = CLIPConfig.from_pretrained(source, **more)
            for part in (config, config.text_config, config.vision_config):
                part_configs.check_attention(vars(part), source)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **more)
        except Exception as error:  # whatever foreign constructors make of foreign configs
            raise ValueError(f"cannot load a CLIP from {source}: {console.first_line(error)}.") from None
        self.clip: Any = checkpoints.pretrained(
            CLIPModel, source, f"a CLIP from {source}", config=config, torch_dtype=torch.float32, **more
        )
        try:
            self.processor: Any = CLIPImageProcessor.from_pretrained(source, **more)
        except Exception:  # a folder without its settings, or with others: CLIP's own, at the model's size
            side = self.clip.config.vision_config.image_size
            self.processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        self.source, self.tokens = source, self.clip.config.text_config.max_position_embeddings

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Projected image features (b, d), for Fréchet and kernel distances."""
        levels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte()
        pixels = self.processor(images=list(levels.cpu()), return_tensors="pt")["pixel_values"]
        pooled = self.clip.vision_model(pixel_values=pixels).pooler_output
        return self.clip.visual_projection(pooled)

    def image_embedding(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors (b, d)."""
        return F.normalize(self.features(images), dim=-1)

    @torch.inference_mode()
    def text_embedding(self, captions: Sequence[str]) -> torch.Tensor:
        """Unit vectors (n, d)."""
        long = sum(len(ids) > self.tokens for ids in self.tokenizer(list(captions)).input_ids)
        if long:
            console.say_once(
                f"{long} of {len(captions)} captions are longer than the {self.tokens} tokens that {self.source} "
                "reads, and are cut."
            )
        parts = [self._texts(list(captions[i : i + TEXTS_AT_ONCE])) for i in range(0, len(captions), TEXTS_AT_ONCE)]
        return torch.cat(parts)

    def _texts(self, captions: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.tokens, return_tensors="pt"
        )
        read = self.clip.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return F.normalize(self.clip.text_projection(read), dim=-1)


def check_clip_config(file: Path) -> None:
    """Raises ValueError for the config of another model than a CLIP, or of sizes that none has."""
    config = read_json(file)
    if not isinstance(config, dict) or config.get("model_type", "clip") != "clip":
        raise ValueError(f"{file} is not the config of a CLIP.")
    part_configs.check_attention(config, str(file))
    for name in ("text_config", "vision_config"):
        part = config.get(name) or {}
        if not isinstance(part, dict):
            raise ValueError(f"{file}: {name} must be an object, got {part!r}.")
        part_configs.check_transformer(part, f"{file}: the {name}'s")


def imagenet_vgg_weights() -> dict[str, torch.Tensor]:
    """torchvision's ImageNet weights of VGG-16, downloaded once; raises ValueError if they cannot be.

    torch.hub writes on stdout, which is for results. The error leaves the remedy to the caller.
    """
    from torchvision.models import VGG16_Weights

    with redirect_stdout(sys.stderr):
        try:
            return dict(VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError) as error:
            reason = console.first_line(error)
            raise ValueError(f"torchvision's VGG-16 is not available and cannot be downloaded ({reason})") from None


class _Residual(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inside), nn.GroupNorm(8, outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.skip = nn.Conv2d(inside, outside, 1, stride=stride) if inside != outside else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.skip(x) + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
