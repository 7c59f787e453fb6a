"""Keys of the page's pictures: a small icon with what it stands for."""

from __future__ import annotations

from markupsafe import Markup

from asdm_prof.renderers.html.svg import rect, shape, tag

Key = list[tuple[Markup, str]]
NO_ICON = Markup("")


def icon(title: str, *children: Markup) -> Markup:
    """A square of 16 pixels."""
    return tag("svg", tag("title", title), *children, width=16, height=16)


def _swatch(title: str, kind: str, marked: bool) -> Markup:
    square = {"width": 16, "height": 16}
    return icon(title, tag("rect", class_=kind, **square), *([tag("rect", class_=f"{kind}-mark", **square)] * marked))


def kinds(glue: bool = True) -> Key:
    """Hue and pattern of each kind of unit."""
    swatches = [
        (_swatch("ResNet", "resnet", False), "ResNet, plain"),
        (_swatch("Transformer", "transformer", True), "Transformer, hatched"),
    ]
    return [*swatches, (_swatch("glue", "glue", True), "glue, dotted")] if glue else swatches


def marks() -> Key:
    """Hue and shape of each kind of unit."""
    return [
        (icon("ResNet", shape("resnet", 8, 8, 5)), "ResNet"),
        (icon("Transformer", shape("transformer", 8, 8, 5)), "Transformer"),
    ]


def fates() -> Key:
    """What becomes of a unit under a plan."""
    stays = icon("stays", rect(1, 1, 14, 14, "resnet"))
    cross = tag("path", d="M1 1l14 14m0-14l-14 14", class_="cross")
    goes = icon("goes", rect(1, 1, 14, 14, "was gone"), cross)
    replaced = icon("replaced", rect(4, 4, 8, 8, "transformer"), rect(1, 1, 14, 14, "was changed"))
    return [(stays, "stays"), (goes, "is removed"), (replaced, "is replaced by what is named beside it")]


def texts(*lines: str) -> Key:
    """Lines without an icon."""
    return [(NO_ICON, line) for line in lines]
