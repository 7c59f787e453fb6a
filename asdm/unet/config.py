"""A UNet's config, checked before diffusers builds anything of it."""

import inspect
from collections.abc import Mapping
from typing import Any

SUPPORTED, STUDENT = "UNet2DConditionModel", "StudentUNet"
MOST_BLOCKS, MOST_LAYERS = 16, 64  # far beyond any published UNet

# Keys that hold one value for all blocks or a list with one for each.
_PER_BLOCK = (
    "down_block_types", "up_block_types", "layers_per_block", "attention_head_dim", "cross_attention_dim",
    "only_cross_attention", "transformer_layers_per_block", "reverse_transformer_layers_per_block",
)  # fmt: skip
_NUMBERS = ("attention_head_dim", "cross_attention_dim")
_LAYERS = ("layers_per_block", "transformer_layers_per_block")
_COUNTS = (
    "in_channels", "out_channels", "norm_num_groups", "encoder_hid_dim", "addition_time_embed_dim", "num_class_embeds",
    "time_embedding_dim", "time_cond_proj_dim", "projection_class_embeddings_input_dim", "conv_in_kernel",
    "conv_out_kernel", "addition_embed_type_num_heads",
)  # fmt: skip
# Keys that another key makes necessary: (key, its value, what has to be there).
_NEEDED = (
    ("addition_embed_type", "text_time", ("addition_time_embed_dim", "projection_class_embeddings_input_dim")),
    ("addition_embed_type", "image", ("encoder_hid_dim",)),
    ("addition_embed_type", "image_hint", ("encoder_hid_dim",)),
    ("class_embed_type", "projection", ("projection_class_embeddings_input_dim",)),
    ("class_embed_type", "simple_projection", ("projection_class_embeddings_input_dim",)),
)


def check(config: Any, where: str) -> None:
    """Raises ValueError in one sentence for a config of another class, or one that no UNet can be built of.

    `where` names the config's file.
    """
    if not isinstance(config, dict):
        raise ValueError(f"{where} is not the config of a diffusers UNet: it holds no JSON object.")
    check_class(config, where)
    check_sizes(config, where)


def check_sizes(config: Any, where: str) -> None:
    """Raises ValueError in one sentence for sizes that no UNet has, nor a ControlNet, which is the half of one."""
    if not isinstance(config, dict) or "block_out_channels" not in config:
        raise ValueError(f"{where} is not a model's config: it has no block_out_channels.")
    try:
        _check_blocks(config)
        _check_values(config)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def check_class(config: Mapping[str, Any], where: str) -> None:
    """Raises ValueError for the config of a class other than diffusers' UNet with text conditioning."""
    name = config.get("_class_name", SUPPORTED)
    if name not in (SUPPORTED, STUDENT):
        raise ValueError(
            f"{where}: class {name} is not supported; choose the config of a {SUPPORTED}, as Stable Diffusion and "
            "SDXL have."
        )
    if "block_out_channels" not in config:
        raise ValueError(f"{where} is not the config of a diffusers UNet: it has no block_out_channels.")


def _check_blocks(config: Mapping[str, Any]) -> None:
    widths = config["block_out_channels"]
    if not isinstance(widths, list) or not 1 <= len(widths) <= MOST_BLOCKS or not all(map(is_count, widths)):
        raise ValueError(f"block_out_channels must list the widths of 1 to {MOST_BLOCKS} blocks, got {widths!r}.")
    for key in _PER_BLOCK:
        value = config.get(key)
        if isinstance(value, list) and len(value) != len(widths):
            raise ValueError(f"{key} has {len(value)} entries for {len(widths)} blocks; give one for each block.")
    for key in _NUMBERS:
        if key in config and not all(map(is_count, _flat(config[key]))):
            raise ValueError(f"{key} must be a number of at least 1 or a list of them, got {config[key]!r}.")
    for key in _LAYERS:
        if not all(type(n) is int and 0 <= n <= MOST_LAYERS for n in _flat(config.get(key, 1))):
            raise ValueError(f"{key} must be numbers from 0 to {MOST_LAYERS}, got {config[key]!r}.")
    nested = any(isinstance(depths, list) for depths in _flat(config.get("transformer_layers_per_block"), deep=False))
    if nested and config.get("reverse_transformer_layers_per_block") is None:
        raise ValueError(
            "transformer_layers_per_block lists the layers of a block one by one, so the up blocks need "
            "reverse_transformer_layers_per_block, which is missing."
        )


def _check_values(config: Mapping[str, Any]) -> None:
    for key in _COUNTS:
        if config.get(key) is not None and not is_count(config[key]):
            raise ValueError(f"{key} must be a number of at least 1, got {config[key]!r}.")
    sides = _flat(config.get("sample_size") or 64)
    if not 1 <= len(sides) <= 2 or not all(map(is_count, sides)):
        raise ValueError(f"sample_size must be a number of at least 1 or two of them, got {config['sample_size']!r}.")
    for key, value, needed in _NEEDED:
        if missing := [name for name in needed if config.get(key) == value and config.get(name) is None]:
            raise ValueError(f"{key} {value!r} needs {missing[0]}, which is missing.")
    if config.get("num_attention_heads") is not None:
        raise ValueError(
            f"num_attention_heads must be null, got {config['num_attention_heads']!r}; diffusers reads the number of "
            "heads from attention_head_dim."
        )
    groups, widths = config.get("norm_num_groups", 32), config["block_out_channels"]
    if groups and any(width % groups for width in widths):
        fitting = [-(-width // groups) * groups for width in widths]
        raise ValueError(
            f"block_out_channels {widths} are not multiples of norm_num_groups {groups}; {fitting} would fit."
        )


def is_count(value: Any) -> bool:
    """Whether a config's value is a whole number from 1 on, as sizes are."""
    return type(value) is int and 1 <= value < 1 << 24


def _flat(value: Any, deep: bool = True) -> list[Any]:
    """The entries of a value that may be a list of lists."""
    entries = value if isinstance(value, list) else [value]
    return [inner for entry in entries for inner in _flat(entry)] if deep and entries is value else entries


def stray_keys(config: Mapping[str, Any]) -> list[str]:
    """Keys that are not settings of a UNet, such as those of a training's moving average; diffusers ignores them."""
    from diffusers import UNet2DConditionModel

    known = {*inspect.signature(UNet2DConditionModel.__init__).parameters, "edits"}
    return [key for key in config if key not in known and not key.startswith("_")]


def note(config: Mapping[str, Any]) -> str | None:
    """What a count or a measurement of this UNet leaves out, in one sentence; None for nothing."""
    if str(config.get("attention_type", "default")).startswith("gated"):
        return (
            "the gated attention of GLIGEN does not run without grounding inputs: its parameters are counted, its MACs "
            "and its time are not."
        )
    return None
