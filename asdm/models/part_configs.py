"""Configs of what is beside a UNet (text encoders, VAE, noise schedule), checked before a library builds of them.

Counts are bounded, so that no number in a file makes a build endless, and nothing is fetched that a config names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from asdm.unet.config import MOST_BLOCKS, MOST_LAYERS, is_count

MOST_TEXT_LAYERS, MOST_STEPS = 200, 100_000
_TEXT_COUNTS = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings",
    "vocab_size", "projection_dim",
)  # fmt: skip
_VAE_COUNTS = ("in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups", "sample_size")
_VAE_LISTS = ("down_block_types", "up_block_types")
_ATTENTIONS = (None, "eager", "sdpa")  # in transformers itself; any other may be a kernel of the hub


def check(texts: Sequence[Mapping[str, Any]], vae: Mapping[str, Any] | None, schedule: Any, where: str) -> None:
    """Raises ValueError in one sentence, which names the folder `where` and the part, for a config of nonsense."""
    for text in texts:
        _check(f"{where}: the text encoder's", text, _TEXT_COUNTS, _check_text)
    if vae is not None:
        _check(f"{where}: the VAE's", vae, _VAE_COUNTS, _check_vae)
    steps = schedule.get("num_train_timesteps", 1000)
    if not is_count(steps) or steps > MOST_STEPS:
        raise ValueError(
            f"{where}: the scheduler's num_train_timesteps must be a number from 1 to {MOST_STEPS}, got {steps!r}."
        )
    prediction = schedule.get("prediction_type", "epsilon")
    if not isinstance(prediction, str):
        raise ValueError(f"{where}: the scheduler's prediction_type must be a word, got {prediction!r}.")


def check_transformer(config: Mapping[str, Any], whose: str) -> None:
    """Raises ValueError, beginning with `whose`, for the config of a CLIP's text or vision that has nonsense in it."""
    _check(whose, config, (*_TEXT_COUNTS, "image_size", "patch_size", "num_channels"), _check_layers)


def _check(whose: str, config: Mapping[str, Any], counts: Sequence[str], more: Any) -> None:
    for key in counts:
        if config.get(key) is not None and not is_count(config[key]):
            raise ValueError(f"{whose} {key} must be a number of at least 1, got {config[key]!r}.")
    if problem := more(config):
        raise ValueError(f"{whose} {problem}.")


def _check_layers(config: Mapping[str, Any]) -> str | None:
    if (config.get("num_hidden_layers") or 1) > MOST_TEXT_LAYERS:
        return f"num_hidden_layers must be at most {MOST_TEXT_LAYERS}, got {config['num_hidden_layers']}"
    return _attention(config)


def _check_text(config: Mapping[str, Any]) -> str | None:
    if problem := _check_layers(config):
        return problem
    width, heads = config.get("hidden_size") or 512, config.get("num_attention_heads") or 8
    return f"hidden_size {width} is not a multiple of num_attention_heads {heads}" if width % heads else None


def check_attention(config: Any, where: str) -> None:
    """Raises ValueError for an attention, in a config or in one of its parts', that would be fetched from the hub."""
    for part in config.values() if isinstance(config, dict) else ():
        check_attention(part, where)
    if isinstance(config, dict) and (problem := _attention(config)):
        raise ValueError(f"{where}: {problem}.")


def _attention(config: Mapping[str, Any]) -> str | None:
    for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        if config.get(key) not in _ATTENTIONS:
            return f"{key} {config[key]!r} is not supported; leave it out"
    return None


def _check_vae(config: Mapping[str, Any]) -> str | None:
    widths = config.get("block_out_channels")
    if not isinstance(widths, list) or not 1 <= len(widths) <= MOST_BLOCKS or not all(map(is_count, widths)):
        return f"block_out_channels must list the widths of 1 to {MOST_BLOCKS} blocks, got {widths!r}"
    if (config.get("layers_per_block") or 1) > MOST_LAYERS:
        return f"layers_per_block must be at most {MOST_LAYERS}, got {config['layers_per_block']}"
    for key in _VAE_LISTS:
        if key in config and (not isinstance(config[key], list) or len(config[key]) != len(widths)):
            return f"{key} must list a type for each of {len(widths)} blocks, got {config[key]!r}"
    groups = config.get("norm_num_groups") or 32
    return (
        f"block_out_channels {widths} are not multiples of norm_num_groups {groups}"
        if any(width % groups for width in widths)
        else None
    )
