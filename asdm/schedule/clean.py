"""A UNet's output as the clean latent that it predicts, and back: what changes least from step to step."""

from __future__ import annotations

from typing import Any

import torch


def rates(scheduler: Any, timestep: float) -> tuple[float, float]:
    """α and σ of the UNet's input αx₀ + σε at a timestep; raises ValueError for a sampler that does not tell."""
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    if cumulative is None:
        raise ValueError(
            f"{type(scheduler).__name__} does not tell how noisy its timesteps are, so no clean latent can be "
            "inherited; inherit the output."
        )
    below = min(max(int(timestep), 0), len(cumulative) - 1)
    above = min(below + 1, len(cumulative) - 1)
    product = torch.lerp(cumulative[below].double().cpu(), cumulative[above].double().cpu(), timestep - below)
    return float(product.sqrt()), float((1 - product).sqrt())


def clean_of(output: torch.Tensor, sample: torch.Tensor, at: tuple[float, float], prediction: str) -> torch.Tensor:
    """x₀ = αx − σv for v-prediction, (x − σε)/α for ε, the output itself for a UNet that predicts x₀."""
    alpha, sigma = at
    if prediction == "sample":
        return output
    sample = sample[:, : output.shape[1]]  # inpainting has more channels
    if prediction == "v_prediction":
        return alpha * sample - sigma * output
    return (sample - sigma * output) / alpha


def output_of(clean: torch.Tensor, sample: torch.Tensor, at: tuple[float, float], prediction: str) -> torch.Tensor:
    """The inverse: v = (αx − x₀)/σ, ε = (x − αx₀)/σ."""
    alpha, sigma = at
    if prediction == "sample":
        return clean
    sample = sample[:, : clean.shape[1]]
    return ((alpha * sample - clean) if prediction == "v_prediction" else (sample - alpha * clean)) / sigma
