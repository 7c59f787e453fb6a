"""What one call of a `UNet2DConditionModel` takes, read off its config."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

HINT_FACTOR = 8  # pixels of Kandinsky's hint per latent pixel
SDXL_IDS = 6  # height, width, crop's top and left, target height and width
HINT_CHANNELS = 4  # of the embedded hint, which is concatenated to the latents


def forward_inputs(
    config: Mapping[str, Any],
    batch: int,
    latent: tuple[int, int],
    tokens: int,
    make: Callable[..., torch.Tensor],
    device: str = "cpu",
) -> dict[str, Any]:
    """Example arguments of one call: `make` gives a tensor of a shape, `latent` is (height, width).

    `encoder_hidden_states` is (batch, tokens, width), or None for a UNet that attends to no text.
    """
    inputs: dict[str, Any] = {
        "sample": make(batch, latent_channels(config), *latent),
        "timestep": torch.full((1,), 500, device=device).expand(batch),
        "encoder_hidden_states": make(batch, tokens, width) if (width := text_width(config)) else None,
        "return_dict": False,
    }
    if (shape := _class_shape(config)) is not None:
        labels = make(batch, *shape)
        inputs["class_labels"] = torch.zeros(batch, dtype=torch.long, device=device) if not shape else labels
    if width := config.get("time_cond_proj_dim"):
        inputs["timestep_cond"] = make(batch, width)
    added = {name: make(batch, *shape) for name, shape in added_shapes(config, latent).items()}
    return inputs | ({"added_cond_kwargs": added} if added else {})


def latent_channels(config: Mapping[str, Any]) -> int:
    """Channels of `sample`: the first convolution's, less those of an embedded hint."""
    channels = config.get("in_channels", 4)
    return channels - HINT_CHANNELS if config.get("addition_embed_type") == "image_hint" else channels


def text_width(config: Mapping[str, Any]) -> int | None:
    """Width of the text states, or None for a UNet that takes none.

    It takes none where image embeddings replace them (Kandinsky 2.2), and where its blocks attend in widths of their
    own, which no single tensor has (AudioLDM).
    """
    if config.get("encoder_hid_dim_type") == "image_proj":
        return None
    if config.get("encoder_hid_dim"):
        return int(config["encoder_hid_dim"])
    widths = config.get("cross_attention_dim", 1280)
    if not isinstance(widths, list | tuple):
        return widths
    return widths[0] if len(set(widths)) == 1 else None


def added_shapes(config: Mapping[str, Any], latent: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """The entries of `added_cond_kwargs` with their shapes, without the batch."""
    kind, projection = config.get("addition_embed_type"), config.get("encoder_hid_dim_type")
    width = config.get("cross_attention_dim", 1280)
    shapes: dict[str, tuple[int, ...]] = {}
    if kind == "text_time":
        pooled, ids = time_ids(config)
        shapes |= {"text_embeds": (pooled,), "time_ids": (ids,)}
    if kind == "text_image":
        shapes["text_embeds"] = (width,)
    if "text_image" in (kind, str(projection).removesuffix("_proj")):
        shapes["image_embeds"] = (width,)
    elif kind in ("image", "image_hint") or projection == "image_proj":
        shapes["image_embeds"] = (config["encoder_hid_dim"],)
    if kind == "image_hint":
        shapes["hint"] = (3, *(HINT_FACTOR * side for side in latent))
    return shapes


def time_ids(config: Mapping[str, Any]) -> tuple[int, int]:
    """Width of the pooled prompt and number of sizes that are embedded beside it (SDXL: 1280 and 6).

    SDXL's refiner has one text encoder, whose pooled output is as wide as its states, and 5 numbers.
    """
    total, each = config["projection_class_embeddings_input_dim"], config["addition_time_embed_dim"]
    ids = 5 if total - 5 * each == config.get("cross_attention_dim") else 6
    return total - ids * each, ids


def _class_shape(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Shape of one class label: () for a number, None for a UNet without."""
    kind = config.get("class_embed_type")
    if kind in ("projection", "simple_projection"):
        return (config["projection_class_embeddings_input_dim"],)
    if kind == "identity":
        return (config.get("time_embedding_dim") or 4 * config["block_out_channels"][0],)
    return () if kind == "timestep" or config.get("num_class_embeds") else None


# ---------------------------------------------------------------------------------------------- beyond a caption

_CONDITIONS = {
    "time_cond_proj_dim": "a guidance embedding",
    "class_embed_type": "class labels",
    "num_class_embeds": "class labels",
    "addition_embed_type": "added conditions",
    "encoder_hid_dim_type": "another encoder's embeddings",
    "encoder_hid_dim": "another encoder's embeddings",
}
_BY_PIPELINE = ("time_cond_proj_dim", "encoder_hid_dim", "text_time", "text_proj")


def check_caption_only(config: Mapping[str, Any], name: str, what: str, by_pipeline: bool = False) -> None:
    """Raises ValueError where `what`, which conditions UNets on captions alone, cannot call this one.

    SDXL's pooled caption and sizes follow from caption and picture, unlike its refiner's aesthetic score. With
    `by_pipeline`, what a pipeline makes of a caption by itself is no obstacle (Kolors, LCM).
    """
    channels, predicted = config.get("in_channels", 4), config.get("out_channels", 4)
    more = [f"an image beside the latents (in_channels {channels})"] if channels > predicted else []
    for key, condition in _CONDITIONS.items():
        if (value := config.get(key)) == "text_time" and time_ids(config)[1] == SDXL_IDS:
            continue
        if value is not None and not (by_pipeline and {key, value} & {*_BY_PIPELINE}):
            more.append(f"{condition} ({key} {value})")
    if more:
        raise ValueError(f"{what} supports UNets conditioned on a caption alone; {name}'s also takes {more[0]}.")
