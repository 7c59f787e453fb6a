"""The passes that a schedule is planned from."""

from __future__ import annotations

from collections.abc import Iterable

from asdm.plan.topology import Topology
from asdm.schedule.presets import deepcache
from asdm.schedule.schedule import UNET, Forecast, Pass

FULL = "full"
LINE, PARABOLA = Forecast(order=1), Forecast(order=2)


def candidates(
    topology: Topology, guided: bool, students: Iterable[str] = (), named: Iterable[str] = ()
) -> dict[str, Pass]:
    """Passes by name, from the whole network to nothing at all; halves of guidance apart where there are two.

    Each of `named`, places as a schedule names them with commas between, gives a pass and its forecast besides.
    """
    passes = {
        FULL: Pass(),
        "output": Pass(inherit=(UNET,)),
        "output-taylor1": Pass(inherit=(UNET,), forecast=LINE),
        "output-taylor2": Pass(inherit=(UNET,), forecast=PARABOLA),
    }
    for name, how in (("clean", None), ("clean-taylor1", LINE), ("clean-taylor2", PARABOLA)):
        passes[name] = Pass(inherit=(UNET,), value="clean", forecast=how)
    if guided:
        passes |= {
            "unconditional": Pass(unconditional=(UNET,), value="clean"),
            "unconditional-taylor1": Pass(unconditional=(UNET,), value="clean", forecast=LINE),
            "no-guidance": Pass(unconditional="drop"),
        }
    for branch in branches(topology):
        inherit = tuple(sorted(deepcache.inherited(topology, branch, unread=False)))
        passes[f"branch{branch}"] = Pass(inherit=inherit)
        passes[f"branch{branch}-taylor1"] = Pass(inherit=inherit, forecast=LINE)
    units = tuple(unit.fqn for unit in topology.units)
    transformers = tuple(unit.fqn for unit in topology.units if unit.kind == "transformer")
    passes["units-taylor1"] = Pass(inherit=units, value="residual", forecast=LINE)
    if transformers:
        passes["transformers-taylor1"] = Pass(inherit=transformers, value="residual", forecast=LINE)
    for words in named:
        places = tuple(word.strip() for word in words.split(","))
        passes["+".join(places)] = Pass(inherit=places)
        passes[f"{'+'.join(places)}-taylor1"] = Pass(inherit=places, forecast=LINE)
    for student in students:
        passes[student] = Pass(network=student)
        for name in ("output", "clean", "clean-taylor1"):
            passes[f"{student}:{name}"] = passes[name].model_copy(update={"network": student})
    return passes


def branches(topology: Topology) -> list[int]:
    """The shallowest branch, and the first one into every deeper block but the last, as DeepCache counts them."""
    numbers, number = [0], 0
    for block in topology.down_blocks[:-2]:
        number += len(topology.layers(block)) + (block in topology.samplers)
        numbers.append(number)
    return numbers


def inherits_only_output(one: Pass) -> bool:
    """Whether a pass needs no network to be run for its inherited half: its damage follows from kept outputs."""
    return one.inherit in ((), (UNET,)) and one.unconditional in (None, (UNET,), "drop")
