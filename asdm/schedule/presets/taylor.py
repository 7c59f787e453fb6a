"""TaylorSeer: the network runs every `n` steps; the others forecast its output, or what each unit adds (`of=units`)."""

from __future__ import annotations

from asdm.plan.topology import Topology
from asdm.schedule.presets import FULL, Steps, at_least, every
from asdm.schedule.schedule import UNET, Forecast, Pass


def make(topology: Topology, steps: int, *, n: int = 3, order: int = 1, of: str = "unet", warm_up: int = 2) -> Steps:
    """Full at the first `warm_up` steps, which give the differences, and at every n-th after them."""
    at_least("taylor", "n", n, 1)
    at_least("taylor", "warm_up", warm_up, 1)
    if of not in ("unet", "units"):
        raise ValueError(f"taylor: 'of' must be unet or units, got {of!r}.")
    if not 1 <= order <= 3:
        raise ValueError(f"order of taylor must be 1, 2 or 3, got {order}.")
    forecast = Forecast(kind="taylor", order=order)
    if of == "unet":
        between = Pass(inherit=(UNET,), forecast=forecast)
    else:
        between = Pass(inherit=tuple(unit.fqn for unit in topology.units), value="residual", forecast=forecast)
    first = ["full"] * min(warm_up, steps)
    rest = every(steps + n, n, "forecast")[1 : 1 + steps - len(first)]
    return Steps({"full": FULL, "forecast": between}, first + rest)
