"""What a student is to learn from its teacher: small callables of one signature, `Seen` → one value per picture (b,).

Every reduction is in fp32 and a mean per tensor and picture, so that a batch cut into parts has the same loss.
`TERMS` has those that need nothing more; the perceptual one is in `asdm.distill.perceptual`, as it needs a network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from asdm.unet.hooks import Places

TINY = 1e-8


@dataclass(frozen=True)
class LossInputs:
    """What one forward of student and teacher gave. b pictures; predictions are (b, 4, h, w)."""

    prediction: torch.Tensor
    teacher_prediction: torch.Tensor
    target: torch.Tensor  # the noise (ε-prediction) or the velocity (v-prediction)
    noisy: torch.Tensor
    alpha: torch.Tensor  # (b,): ᾱ_t, the share of the signal in `noisy`
    prediction_type: str
    min_snr: float | None = None  # γ of Min-SNR
    normalise: bool = False  # divide by the teacher's own mean square (LAPTOP-Diff), so that layers weigh alike
    features: dict[str, torch.Tensor] = field(default_factory=dict)
    teacher_features: dict[str, torch.Tensor] = field(default_factory=dict)
    places: dict[str, Places] = field(default_factory=dict)


Term = Callable[[LossInputs], torch.Tensor]


def squared_distance(ours: torch.Tensor, theirs: torch.Tensor, normalise: bool) -> torch.Tensor:
    """Mean square of the difference per picture (b,), in units of the teacher's mean square with `normalise`."""
    ours, theirs = ours.float().flatten(1), theirs.float().flatten(1)
    error = (ours - theirs).square().mean(1)
    return error / (theirs.square().mean(1) + TINY) if normalise else error


def denoising(seen: LossInputs) -> torch.Tensor:
    """The diffusion model's own loss: prediction against the noise, or the velocity, that was really there."""
    return squared_distance(seen.prediction, seen.target, False) * snr_weight(seen)


def output(seen: LossInputs) -> torch.Tensor:
    """Prediction against the teacher's."""
    return squared_distance(seen.prediction, seen.teacher_prediction, False) * snr_weight(seen)


def features(seen: LossInputs) -> torch.Tensor:
    """What every down and up block gives, against the teacher's: BK-SDM's Σ MSE; the mean of it where normalised."""
    return _at(seen, "features")


def self_attention(seen: LossInputs) -> torch.Tensor:
    """What every self-attention gives: of all features the ones to match, says KOALA."""
    return _at(seen, "self_attention")


def mid_block(seen: LossInputs) -> torch.Tensor:
    """The middle block's map: semantic-aware supervision (§2.5), which helps `down_blocks.0` most."""
    return _at(seen, "mid_block")


def _at(seen: LossInputs, kind: str) -> torch.Tensor:
    found = [
        squared_distance(seen.features[ours], seen.teacher_features[theirs], seen.normalise)
        for ours, theirs in seen.places[kind]
    ]
    total = torch.stack(found).sum(0)
    return total / len(found) if seen.normalise else total


def snr_weight(seen: LossInputs) -> torch.Tensor:
    """Min-SNR's weight per picture (b,): min(SNR, γ) over SNR for ε, over SNR + 1 for v; 1 without a γ."""
    if seen.min_snr is None:
        return torch.ones_like(seen.alpha)
    snr = seen.alpha / (1 - seen.alpha)
    return snr.clamp(max=seen.min_snr) / (snr + 1 if seen.prediction_type == "v_prediction" else snr)


def noisy_and_target(
    clean: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor, prediction_type: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The noisy latents (b, 4, h, w) at ᾱ (b,), and what a perfect model predicts from them."""
    signal, sigma = (x.view(-1, 1, 1, 1) for x in (alpha.sqrt(), (1 - alpha).sqrt()))
    noisy = signal * clean + sigma * noise
    return noisy, signal * noise - sigma * clean if prediction_type == "v_prediction" else noise


def predicted_clean(seen: LossInputs, prediction: torch.Tensor) -> torch.Tensor:
    """x̂₀ (b, 4, h, w): the picture, still a latent, that a prediction amounts to."""
    signal, sigma = (x.view(-1, 1, 1, 1) for x in (seen.alpha.sqrt(), (1 - seen.alpha).sqrt()))
    if seen.prediction_type == "v_prediction":
        return signal * seen.noisy - sigma * prediction.float()
    return (seen.noisy - sigma * prediction.float()) / signal


TERMS: dict[str, Term] = {term.__name__: term for term in (denoising, output, features, self_attention, mid_block)}
PREDICTIONS = ("epsilon", "v_prediction")
PLACED = ("features", "self_attention", "mid_block")  # terms that compare features, so that a plan may leave none


# ---------------------------------------------------------------------------------------------- blockwise


def block_outputs(pairs: list[tuple[torch.Tensor, torch.Tensor]], normalise: bool) -> torch.Tensor:
    """Mean over maps of how far blocks are from the teacher's blocks, given the teacher's own inputs (b,)."""
    found = [squared_distance(ours, theirs, normalise) for ours, theirs in pairs]
    return torch.stack(found).mean(0)
