"""What a search refuses before it plans, times or trains anything: in hours it would come too late."""

from __future__ import annotations

from typing import Any

from asdm.data import datasets
from asdm.data.choice import is_emoji
from asdm.data.encoder import Encoder, check_encoders
from asdm.distill import losses, recipes
from asdm.distill.settings import check_settings
from asdm.evaluate import judges, metrics
from asdm.evaluate.metrics.recall_at_1 import CANDIDATES
from asdm.evaluate.quality import JUDGED
from asdm.evaluate.real_pictures import usable_examples
from asdm.models import example_inputs, loading
from asdm.models.families import Family
from asdm.models.pipeline import pipeline
from asdm.models.settings import PictureSetup, checkpoint_of
from asdm.models.sources import weights_of
from asdm.unet.blocks import topology
from asdm.unet.inputs import check_caption_only
from asdm.utils.settings import check_bounds
from asdm_prof.search.halving import Halving
from asdm_prof.search.settings import SearchSettings
from asdm_prof.search.worker import training_settings


def check(family: Family, settings: SearchSettings) -> None:
    """Raises ValueError naming the first bad setting, its value and the choices; looks at no data."""
    check_bounds(settings)
    check_caption_only(family.unet, family.name, "asdm-prof search")
    Halving(settings.candidates, settings.rungs, settings.steps)
    recipes.load(settings.recipe)
    check_settings(training_settings(settings, steps=1))
    if not family.text_encoders or not family.vae:
        raise ValueError(f"{family.name} is only a UNet, whose pictures cannot be judged; name a whole pipeline.")


def check_judging(family: Family, settings: SearchSettings, named: str) -> None:
    """Raises ValueError where the data, as they were `named`, are too few, or a network is not available.

    As many examples are decoded as the candidates are judged by.
    """
    pixels = example_inputs.latent_size(family, None) * family.vae_factor
    data: Any = datasets.open_source(str(settings.data), settings.split, pixels)
    if not isinstance(data, datasets.Stream):
        _check_captions(list(data.captions), settings, named)
    _check_networks(family, settings, named)
    if getattr(data, "encoder_sha256", None) is not None:
        weights = weights_of(family, settings, needs="asdm-prof search")
        setup = PictureSetup(**checkpoint_of(settings) | {"weights": weights}, device=settings.device)
        check_encoders(data, named, Encoder(pipeline(family, None, setup)), family)
    found = [example.caption for example in usable_examples(data, named, settings.prompts, "prompts")]
    if isinstance(data, datasets.Stream):
        _check_captions(found, settings, named)


def _check_captions(captions: list[str], settings: SearchSettings, named: str) -> None:
    if settings.prompts > len(captions):
        raise ValueError(f"prompts must be at most the {len(captions)} examples of {named}, got {settings.prompts}.")
    if settings.metric == "recall_at_1" and (different := len(set(captions))) < CANDIDATES:
        raise ValueError(
            f"recall_at_1 looks for a caption among {CANDIDATES} and {named} has {different} different ones; choose a "
            "--metric other than recall_at_1."
        )
    if settings.metric == "clip_score" and not any(captions):
        raise ValueError(f"{named} has no captions, which clip_score needs; choose a --metric other than clip_score.")


def _check_networks(family: Family, settings: SearchSettings, named: str) -> None:
    """The networks that judge by the metric and that the recipe's losses take."""
    data, metric = str(settings.data), str(settings.metric)
    module = next(modules[metric] for against in metrics.AGAINST if metric in (modules := metrics.modules(against)))
    try:
        if hasattr(module, "NETWORK"):
            module.load_network(None)
    except ValueError as error:
        raise ValueError(f"{_reason(error)}; choose a --metric other than {metric}.") from None
    if metric in JUDGED:
        judges.required(settings.judge, named, f"--metric {metric}")
    if metric == "perceptual_to_teacher" and not is_emoji(data):
        raise ValueError(
            f"{metric} compares features of a VGG that was trained on emoji, and {named} is not emoji; choose --metric "
            "latent_mse_to_teacher."
        )
    shape = topology(loading.meta_unet(family))
    for name in losses.with_network(recipes.terms_of(settings.recipe, shape, settings.steps)):
        try:
            losses.load(name).check_network(training_settings(settings, steps=1))
        except ValueError as error:
            needs = f"the recipe {settings.recipe} needs a {losses.load(name).NETWORK}"
            raise ValueError(f"{needs}: {_reason(error)}; choose --recipe bk_sdm.") from None


def _reason(error: ValueError) -> str:
    """What a network lacks, without the options of other commands that would name it."""
    text = str(error)
    return (text.partition(";")[0] if "--network" in text or "--vgg" in text else text).rstrip(".")
