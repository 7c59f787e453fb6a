"""Loss terms: what a student learns from its teacher, one file per term; the file's name is the term's.

A file defines:

- `COMPARES`: `"predictions"` (what the whole UNet outputs), `"feature_maps"` (what modules inside it output) or
  `"block_outputs"` (what each trained block outputs, given the inputs of the teacher's block),
- `MODES`: the modes in which it may be used (feature maps exist in `end_to_end` only, block outputs in `blockwise`),
- `loss(inputs: LossInputs) -> Tensor`: one value per image (b,),
- `places(student, name_map) -> Places`, where it compares feature maps: pairs of (student's module, teacher's module),
- `load_network(context: TrainContext) -> Any`, where it needs a frozen network, which `loss` gets as `inputs.network`.
  Such a term also defines `NETWORK`, what the network is called (`"VGG"`), and `check_network(settings)`, which raises
  ValueError before the run where it cannot be had. Where a setting of that name in lower case chooses the network,
  `network_for(settings)` says in words which one a run takes.

Reductions are in fp32 and are means per tensor and image, so that splitting a batch does not change the loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any, Literal

import torch

from asdm.distill.settings import DistillSettings
from asdm.unet.hooks import Places
from asdm.utils import registry

Mode = Literal["end_to_end", "blockwise"]
MODES: tuple[Mode, ...] = ("end_to_end", "blockwise")
PREDICTIONS = ("epsilon", "v_prediction")
TINY = 1e-8
NO_SIGNAL = 1e-6  # some schedulers write 2⁻²⁴ for a zero ᾱ


@dataclass(frozen=True)
class LossInputs:
    """The results of one forward of student and teacher for b images; predictions are (b, 4, h, w).

    `prediction` is None in blockwise mode where the last block is frozen; then only block outputs are compared.
    """

    prediction: torch.Tensor
    teacher_prediction: torch.Tensor
    target: torch.Tensor  # the noise (ε-prediction) or the velocity (v-prediction)
    noisy: torch.Tensor
    alpha: torch.Tensor  # (b,): ᾱ_t, the share of the signal in `noisy`
    prediction_type: str
    min_snr: float | None = None  # γ of Min-SNR
    normalise: bool = False  # divide by the teacher's mean square (LAPTOP-Diff), so that all layers weigh the same
    maps: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()  # (student's, teacher's) at the term's places
    network: Any = None  # from the term's `load_network`


def names() -> list[str]:
    """All loss terms, sorted."""
    return registry.names(__name__)


def load(name: str) -> ModuleType:
    """The file of a term; raises ValueError with the choices."""
    return registry.load(__name__, name)


def is_legal(name: str, mode: Mode) -> bool:
    """Whether there is a term of this name that may be used in a mode."""
    return name in names() and mode in load(name).MODES


def legal(mode: Mode) -> list[str]:
    """The terms that may be used in a mode."""
    return [name for name in names() if is_legal(name, mode)]


def needs_network(name: str) -> bool:
    """Whether a term has a frozen network of its own."""
    return hasattr(load(name), "load_network")


def with_network(terms: Iterable[str]) -> list[str]:
    """Those of the terms that have a frozen network of their own, sorted."""
    return [name for name in sorted({*terms} & {*names()}) if needs_network(name)]


def network_setting(name: str) -> str | None:
    """The setting that names a term's network, such as `vgg`; None where there is no choice."""
    setting: str = load(name).NETWORK.lower()
    return setting if setting in {field.name for field in fields(DistillSettings)} else None


def find_places(terms: Iterable[str], student: torch.nn.Module, name_map: dict[str, str]) -> dict[str, Places]:
    """The places of each term that compares feature maps, before their shapes are compared (`hooks.comparable`)."""
    return {name: load(name).places(student, name_map) for name in terms if load(name).COMPARES == "feature_maps"}


# ---------------------------------------------------------------------------------------------- shared by the terms


def squared_distance(student: torch.Tensor, teacher: torch.Tensor, normalise: bool) -> torch.Tensor:
    """Mean squared difference per image (b,), in units of the teacher's mean square with `normalise`."""
    student, teacher = student.float().flatten(1), teacher.float().flatten(1)
    error = (student - teacher).square().mean(1)
    return error / (teacher.square().mean(1) + TINY) if normalise else error


def map_distances(inputs: LossInputs) -> torch.Tensor:
    """Squared distance of each pair of maps and each image (maps, b)."""
    return torch.stack([squared_distance(student, teacher, inputs.normalise) for student, teacher in inputs.maps])


def feature_loss(inputs: LossInputs) -> torch.Tensor:
    """BK-SDM's Σ MSE over feature maps; the mean over them with `normalise` (b,)."""
    total = map_distances(inputs).sum(0)
    return total / len(inputs.maps) if inputs.normalise else total


def snr_weight(inputs: LossInputs) -> torch.Tensor:
    """Min-SNR's weight per image (b,): min(SNR, γ) over SNR for ε, over SNR + 1 for v; 1 without a γ."""
    if inputs.min_snr is None:
        return torch.ones_like(inputs.alpha)
    snr = inputs.alpha / (1 - inputs.alpha)
    return snr.clamp(max=inputs.min_snr) / (snr + 1 if inputs.prediction_type == "v_prediction" else snr)


def noisy_and_target(
    clean: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor, prediction_type: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The noisy latents (b, 4, h, w) at ᾱ (b,), and what a perfect model predicts from them."""
    signal, sigma = _scales(alpha)
    noisy = signal * clean + sigma * noise
    return noisy, signal * noise - sigma * clean if prediction_type == "v_prediction" else noise


def predicted_clean(inputs: LossInputs, prediction: torch.Tensor) -> torch.Tensor:
    """x̂₀ (b, 4, h, w): the clean latents that a prediction implies."""
    signal, sigma = _scales(inputs.alpha)
    if inputs.prediction_type == "v_prediction":
        return signal * inputs.noisy - sigma * prediction.float()
    return (inputs.noisy - sigma * prediction.float()) / signal


def check_schedule(alphas: torch.Tensor, prediction_type: str, name: str) -> None:
    """Raises ValueError for ε-prediction under a schedule that ends in pure noise (zero terminal SNR).

    There x̂₀ and the SNR's weight are divisions by ᾱ = 0; a prediction of the velocity needs none.
    """
    if prediction_type == "epsilon" and float(alphas.min()) < NO_SIGNAL:
        raise ValueError(
            f"{name}'s noise schedule ends in pure noise, of which ε-prediction learns nothing; name --prediction-type "
            "v_prediction if that is what it was trained with."
        )


def _scales(alpha: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """√ᾱ and √(1 − ᾱ), each (b, 1, 1, 1)."""
    return alpha.sqrt().view(-1, 1, 1, 1), (1 - alpha).sqrt().view(-1, 1, 1, 1)
