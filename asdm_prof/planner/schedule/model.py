"""What a schedule does to an image by single measured damages: the state between two steps, and a pass in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from asdm.schedule.schedule import Pass
from asdm_prof.records.steps_damage import PassDamage

Exponent = Literal["sum", "amplitudes"]


class State(NamedTuple):
    """The network that ran in full last, how many steps ago (more than `ages`: too long ago), and how many steps after
    its full step before that (0: there was none).
    """

    network: str
    age: int
    gap: int


def is_full(one: Pass) -> bool:
    """Whether a pass renews everything that later steps inherit."""
    return not one.inherit and one.unconditional is None


@dataclass(frozen=True)
class StepsModel:
    """Damages of single steps, and how they add up to that of a final latent."""

    passes: Mapping[str, Pass]
    errors: Mapping[str, Sequence[Sequence[Sequence[float | None]]]]
    gains: Sequence[float]
    ages: int
    used: Exponent = "sum"
    factor: float = 1.0

    @classmethod
    def of(
        cls, passes: Mapping[str, Pass], damages: Sequence[PassDamage], gains: Sequence[float], used: Exponent = "sum",
        factor: float = 1.0,
    ) -> StepsModel:  # fmt: skip
        errors = {one.name: one.error for one in damages}
        ages = max(len(step) for one in damages for step in one.error)
        return cls(passes, errors, gains, ages, used, factor)

    @property
    def calls(self) -> int:
        return len(self.gains)

    def after(self, state: State | None, name: str) -> State | None:
        """The state after a pass, or None where it cannot follow."""
        one = self.passes[name]
        if is_full(one):
            if state is None or state.network != one.network:
                return State(one.network, 0, 0)
            return State(one.network, 0, min(state.age + 1, self.ages))
        if state is None or state.network != one.network:
            return None
        if one.unconditional == "drop" and not one.inherit:
            return state._replace(age=min(state.age + 1, self.ages + 1))
        return state._replace(age=state.age + 1) if state.age < self.ages else None

    def error(self, step: int, state: State | None, name: str) -> float | None:
        """The output's error of a pass at a step; None where it cannot follow or was not measured."""
        after, one, rows = self.after(state, name), self.passes[name], self.errors[name][step]
        if after is None:
            return None
        if not one.inherit and one.unconditional in (None, "drop"):
            return rows[0][0] if rows else None
        if after.age > len(rows):
            return None
        row = rows[after.age - 1]
        if len(row) == 1 or (after.gap == 0 and one.forecast is None):
            return row[0]
        return row[after.gap - 1] if 0 < after.gap <= len(row) else None

    def terms(self, names: Sequence[str]) -> list[float]:
        """What every step of a schedule contributes to the final latent's error; raises ValueError if one cannot."""
        state, terms = None, []
        for step, name in enumerate(names):
            error = self.error(step, state, name)
            if error is None:
                raise ValueError(f"step {step}: {name} cannot follow, or was not measured there.")
            terms.append(self.term(step, error))
            state = self.after(state, name)
        return terms

    def term(self, step: int, error: float) -> float:
        """An error at a step as what adds up: the final latent's, or its root."""
        damage = self.gains[step] * error
        return float(np.sqrt(damage)) if self.used == "amplitudes" else damage

    def damage(self, total: float) -> float:
        """The final latent's mean square error from the terms' sum."""
        return self.factor * (total**2 if self.used == "amplitudes" else total)
