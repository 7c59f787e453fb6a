"""Planners against each other, budget by budget, on measured joint damage."""

from __future__ import annotations

from asdm.plan.edits import AnyEdit
from asdm.utils.record import Frozen, Record
from asdm_prof.records.damage import Interval


class Contestant(Frozen):
    """One plan at one budget: ours, or a baseline's, with its measured joint damage."""

    name: str
    ours: bool
    ratio: float  # predicted latency, student / teacher
    predicted: float | None  # damage by the planner; None where an edit was not measured alone
    damage: Interval
    by_prompt: tuple[float, ...]
    edits: tuple[AnyEdit, ...]


class BudgetRow(Frozen):
    """Everyone within one latency budget, least measured damage first."""

    budget: float
    contestants: tuple[Contestant, ...]
    ahead: Interval | None  # damage of the best baseline less ours, prompt by prompt; above 0: ours is better
    won: bool

    @property
    def ours(self) -> Contestant:
        return next(one for one in self.contestants if one.ours)

    @property
    def baseline(self) -> Contestant | None:
        return next((one for one in self.contestants if not one.ours), None)


class Budgets(Record, schema="asdm.budgets/1"):
    """`asdm.budgets/1`: our plan against all baselines at each budget, on measured joint damage."""

    created_utc: str
    command: str
    family: str
    weights_sha256: str
    profile_sha256: str
    damage_sha256: str
    candidates: int  # best plans by prediction, of which ours is the one that measured best
    split: str
    prompts: int
    timesteps: tuple[int, ...]
    rows: tuple[BudgetRow, ...]
    seconds: float
    environment: dict[str, str]
