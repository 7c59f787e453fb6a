"""Pruning plans as data: the edits of one teacher, and the plan that holds them with its budget, proof and reasons.

A plan always speaks the teacher's names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from asdm.records.measurement import Number, device_kind
from asdm.utils import notebook
from asdm.utils.record import Frozen, Record, first_problem, later, sha256_of
from asdm.utils.sizes import Size, shown


def format_options(options: Mapping[str, Any]) -> str:
    """Options of a replacement as text: `factor 3`."""
    return ", ".join(f"{name} {value}" for name, value in sorted(options.items()))


class Edit(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class RemoveLayer(Edit):
    """Remove a layer of a down or up block: its ResNet, its Transformer and its skip."""

    op: Literal["remove_layer"] = "remove_layer"
    block: str
    layer: int = Field(ge=0)

    def __str__(self) -> str:
        return f"remove layer {self.layer} of {self.block}"


class RemoveUnit(Edit):
    """Make a unit an identity; its neighbours stay."""

    op: Literal["remove_unit"] = "remove_unit"
    unit: str

    def __str__(self) -> str:
        return f"remove {self.unit}"


class ReplaceUnit(Edit):
    """Replace a unit with a cheaper module that inherits its weights; `with` names a file in `replacements/`."""

    op: Literal["replace_unit"] = "replace_unit"
    unit: str
    with_: str = Field(alias="with")
    options: dict[str, Any] = Field(default_factory=dict)

    def __str__(self) -> str:
        return f"replace {self.unit} with {self.what}"

    @property
    def what(self) -> str:
        """The replacement with its options: `kv_downsample (factor 3)`."""
        return f"{self.with_} ({options})" if (options := format_options(self.options)) else self.with_


class RemoveBlock(Edit):
    """Remove `mid_block`, or the deepest down block together with its mirrored up block."""

    op: Literal["remove_block"] = "remove_block"
    block: str

    def __str__(self) -> str:
        return f"remove {self.block}"


class GraftBlock(Edit):
    """Take a block's weights from a stage-1 student (§2.2, Fig. 4) and train them; other blocks stay the teacher's.

    `source` is that student's folder, if the plan names one; a build may name another.
    """

    op: Literal["graft_block"] = "graft_block"
    block: str
    source: str | None = None

    def __str__(self) -> str:
        return f"graft {self.block}"


AnyEdit = Annotated[RemoveLayer | RemoveUnit | ReplaceUnit | RemoveBlock | GraftBlock, Field(discriminator="op")]
Edits = tuple[AnyEdit, ...]


class Prediction(Frozen):
    """The profile's prediction for a plan's student: latency, and ratios to the teacher's UNet latency."""

    latency_s: Number
    ratio: Number
    low: Number
    high: Number


class Proof(Frozen):
    """The solver's certificate: the plan's damage, the proven lower bound, and the gap between them."""

    status: str
    damage: Number
    bound: Number
    gap: Number


class MeasuredAt(Frozen):
    """The settings of a plan's profile; with other settings its prices are a guess."""

    backend: str
    dtype: str
    device: str
    threads: int
    batch: int
    size: Size


class Regret(Frozen):
    """The cost of treating a unit differently: damage of the best such plan less the plan's; None: no legal plan."""

    unit: str
    choice: str  # what the plan does with it
    other: str | None  # the best that it could do instead
    damage: float | None


class ShadowPrice(Frozen):
    """The value of a little more of a budget, by relaxation to fractions of choices, and the next whole step."""

    damage: float  # per `per`, 0 where the budget does not bind
    per: str  # "ms", "GMAC", "M parameters", "MiB"
    slack: float  # what is left of the budget, in `per`
    next_step: float | None = None  # how much more would lower the damage, in `per`; None: nothing does
    next_saves: float | None = None  # damage less after that step


class Why(Frozen):
    """The reasons for a plan: which budgets bind, what a little more of them is worth, and every unit's regret."""

    binding: tuple[str, ...]
    shadow_prices: dict[str, ShadowPrice]
    regrets: tuple[Regret, ...]


def _alike(name: str, here: str | Size, there: str | Size) -> bool:
    """Whether two settings are the same; of devices, whether they are of one kind."""
    return device_kind(str(here)) == device_kind(str(there)) if name == "device" else here == there


class PruningPlan(Record, schema="asdm.plan/1"):
    """`asdm.plan/1`: edits of one teacher, the budget they were made for, and the proof that they are the best."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)
    name: str = "plan"
    family: str
    teacher_config_sha256: str | None = None
    edits: Edits
    frozen: tuple[str, ...] = ()
    budget: str | None = None
    budget_ratio: Number | None = None
    confidence: Number | None = None
    damage_from: str | None = None
    predicted: Prediction | None = None
    proof: Proof | None = None
    profile_sha256: str | None = None
    validation_sha256: str | None = later(None)  # where σ was measured instead of assumed

    measured_at: MeasuredAt | None = later(None)
    budgets: dict[str, float] | None = later(None)  # besides latency: MACs, parameters, memory, as shares
    damage_sha256: str | None = later(None)  # where damage was measured
    loads_in: tuple[str, ...] = later(())  # programs that were to load the student
    why: Why | None = later(None)

    def not_measured_at(self, **used: str | Size) -> str | None:
        """A warning naming the settings in use that differ from those of the plan's profile, or None."""
        if self.measured_at is None:
            return None
        pairs = [(name, value, getattr(self.measured_at, name)) for name, value in used.items()]
        unlike = [pair for pair in pairs if not _alike(*pair)]
        apart = ", ".join(f"{name} {shown(here)} (measured at {shown(there)})" for name, here, there in unlike)
        warning = f"{self.name} was not measured where it is used: {apart}; what it saves here may be another amount."
        return warning if apart else None

    @model_validator(mode="after")
    def _no_edit_twice(self) -> Self:
        keys = [edit.model_dump_json(by_alias=True) for edit in self.edits]
        for i, edit in enumerate(self.edits):
            if keys[i] in keys[:i]:
                raise ValueError(f"the edit {edit} appears twice")
        return self

    def sha256(self) -> str:
        """The hash that the next file of the chain refers to; the reasons (`why`) do not count."""
        return sha256_of(self.model_dump(mode="json", by_alias=True, exclude={"why"}))

    def edits_sha256(self) -> str:
        return sha256_of([edit.model_dump(mode="json", by_alias=True) for edit in self.edits])

    def _repr_html_(self) -> str:
        """The prediction and the edits, for notebooks."""
        predicted = self.predicted
        promise = f": predicted {predicted.ratio:.2f}× [{predicted.low:.2f}, {predicted.high:.2f}]" if predicted else ""
        proof = self.proof
        note = f"Solver: {proof.status}, damage {proof.damage:.3g}, gap {proof.gap:g}." if proof else ""
        at = f" at {self.budget}" if self.budget else ""
        return notebook.table(f"{self.name}{at} of {self.family}{promise}", ["edit"], [[e] for e in self.edits], note)


def parse_edits(data: Any, source: str = "plan") -> Edits:
    """Edits from plain JSON values; raises ValueError naming the first invalid one."""

    class _Edits(BaseModel):
        edits: Edits

    try:
        return _Edits.model_validate({"edits": json.loads(json.dumps(data, allow_nan=False))}).edits
    except ValidationError as error:
        raise ValueError(f"{source}: {first_problem(error)}") from None
