"""Which model and which weights a command's words name: families, folders, single files and hub ids."""

from dataclasses import replace
from pathlib import Path

from asdm.models import checkpoints
from asdm.models.execution import RANDOM
from asdm.models.families import Family, from_folder, load_family
from asdm.models.family import EDM, FLOW
from asdm.models.loading import meta_unet, unet_config_sha256
from asdm.models.recognition import from_file
from asdm.models.settings import Checkpoint
from asdm.plan.edits import PruningPlan
from asdm.plan.presets import PRESETS
from asdm.utils import console


def resolve(
    name: str | Family | None, settings: Checkpoint, needs: str | None = None, default: str = "sd15"
) -> tuple[Family, str]:
    """A family and the weights to load for it, from its name and a command's settings.

    Without a name, the weights tell the family, and `default` is taken without either. Random weights are for the bare
    name of a family alone, and not where `needs` names what needs trained ones. Raises ValueError in one sentence for
    what is not there, does not fit, or would have to be random unasked.
    """
    family = family_of(name, settings, default)
    return family, weights_of(family, settings, needs)


def family_of(name: str | Family | None, settings: Checkpoint, default: str = "sd15") -> Family:
    """The family that `resolve` gives, from configs and headers alone."""
    if settings.weights not in (None, RANDOM):
        family = _of_weights(name, settings.weights, settings)
    else:
        family = name if isinstance(name, Family) else load_family(name or default, settings.config)
    prediction = getattr(settings, "prediction_type", None)
    return replace(family, prediction_type=prediction) if prediction else family


def family_in_plan(source: str) -> str | None:
    """The family that a plan's file names; None for a preset."""
    return None if source in PRESETS or not Path(source).exists() else PruningPlan.load(source).family


def weights_of(family: Family, settings: Checkpoint, needs: str | None = None) -> str:
    """The weights that `resolve` gives."""
    weights = settings.weights or own_weights(family, needs, settings.variant)
    if needs:
        check_prediction(family, needs)
        parts_of(family, weights, settings.variant)
    return weights


def check_prediction(family: Family, what: str) -> None:
    """Raises ValueError for a family whose UNet predicts a flow, or is conditioned on EDM's noise."""
    others = {FLOW: "matches flows", EDM: "is EDM's, whose noise has no last step"}
    if family.prediction_type in others:
        why = others[family.prediction_type]
        raise ValueError(f"{what} supports epsilon and v_prediction; the scheduler of {family.name} {why}.")


def parts_of(family: Family, weights: str, variant: str | None = None) -> Path | None:
    """The folder or file that VAE and text encoder come from: the weights' own, or the family's; None: random ones.

    Raises ValueError where both hold a UNet alone.
    """
    if weights == RANDOM:
        return None
    for place in (checkpoints.place_of(weights, variant), family.file, family.folder):
        if place and checkpoints.is_pipeline(place):
            return place
    raise ValueError(
        f"{weights} holds a UNet alone, and pictures and captions need a text encoder and a VAE too; name a whole "
        "checkpoint, or the family or folder whose other parts it goes with."
    )


def own_weights(family: Family, needs: str | None = None, variant: str | None = None) -> str:
    """A family's own weights, or random ones for a bare name; see `resolve`."""
    if family.file:
        return str(family.file)
    if family.folder and (checkpoints.has_weights(checkpoints.unet_folder(family.folder)) or family.source):
        checkpoints.weight_files(checkpoints.unet_folder(family.folder), variant)
        return str(family.folder)
    if family.source:
        raise ValueError(
            f"{family.source} is a config without weights; name some (--weights FILE|DIR|HUB_ID), or --weights random."
        )
    if needs:
        raise ValueError(
            f"{needs} needs trained weights, and {family.name} is an architecture without any; name some "
            "(--weights FILE|DIR|HUB_ID), or --weights random."
        )
    console.say_once(f"{family.name} comes without weights: using random ones (--weights FILE|DIR|HUB_ID for others).")
    return RANDOM


def weights_to_validate(family: Family, asked: str | None, profiled: str) -> str:
    """Weights for the validation of a profile: as asked, else a named folder's or checkpoint's own, else the profile's.

    Raises ValueError for a named config without weights.
    """
    return asked or (own_weights(family) if family.source else profiled)


# ---------------------------------------------------------------------------------------------- named weights


def _of_weights(name: str | Family | None, given: str, settings: Checkpoint) -> Family:
    """The family of named weights, by the name that was given for it, if any."""
    place = checkpoints.place_of(given, settings.variant)
    named = name if isinstance(name, Family) or name is None else load_family(name, settings.config)
    if place.is_file():
        base = named or (load_family(settings.config) if settings.config else None)
        own = replace(from_file(place, base), name=given)
    else:
        checkpoints.weight_files(checkpoints.unet_folder(place), settings.variant)
        own = replace(from_folder(place), name=given)
    return _called(named, own) if named else own


def _called(named: Family, own: Family) -> Family:
    """A checkpoint's family under the name that was given, with that family's other parts where it has none.

    Raises ValueError for a UNet of other shapes.
    """
    if unet_config_sha256(named.unet) != unet_config_sha256(own.unet):
        theirs, ours = ({n: tuple(t.shape) for n, t in meta_unet(f).state_dict().items()} for f in (own, named))
        try:
            checkpoints.check_shapes(ours, theirs, f"{own.name} as {named.name}")
        except ValueError as error:
            raise ValueError(f"{str(error).rstrip('.')}; leave the family out, or name its own.") from None
    if own.file or (own.vae and own.text_encoders):
        return replace(own, name=named.name, title=named.title, guidance_scale=named.guidance_scale)
    return replace(named, unet=own.unet, size=own.latent * named.vae_factor)
