"""What a profile is, as a file: versioned, with every raw sample, so that all tables and pictures come from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue

from asdm import notebook
from asdm.files import Frozen, Record, later
from asdm.plan import AnyEdit, MeasuredAt, Prediction, Topology
from asdm.results import Estimate, HostUse, Latency, Macs, Metric, UNetRun, mac_unit

Bound = Literal["compute", "memory", "overhead"]


class Peaks(Frozen):
    """What this machine reaches through the profile's own runtime and dtype; bandwidth is a triad's."""

    gemm_flops_per_s: float
    conv_flops_per_s: float
    bytes_per_s: float
    seconds_per_call: float

    @property
    def flops_per_s(self) -> float:
        return max(self.gemm_flops_per_s, self.conv_flops_per_s)


class Roofline(Frozen):
    """The least seconds of a part by each peak, the longest of which is its `bound`."""

    compute_s: float
    memory_s: float
    overhead_s: float
    bound: Bound
    attained: float  # the roof's seconds (compute or memory) / measured seconds; 1 is the roof itself


class PartRecord(Macs):
    """A unit or a piece of glue: what it holds, what it computes, how long it takes."""

    fqn: str
    label: str
    kind: Literal["resnet", "transformer", "glue"]
    block: str
    layer: int | None = None
    params: int
    parameter_bytes: int = later(0)
    peak_memory_bytes: int  # activations alive at the part's worst moment, by the meta count
    moved_bytes: int = later(0)  # parameters, and activations in and out, each once
    latency_s: Latency
    share: Estimate  # of the whole UNet, run by run
    roofline: Roofline | None = later(None)


class OptionRecord(Macs):
    """A replacement timed in the unit's place, inside the real forward."""

    unit: str
    replacement: str
    params: int
    latency_s: Latency
    share: Estimate  # of the teacher's UNet, each run scaled by the parts that it leaves alone


class ComponentRecord(Macs):
    """A model that an image passes besides the UNet, and how often."""

    name: str
    params: int
    calls_per_image: int
    latency_s: Latency | None = None


class WholeRecord(Macs):
    """The whole UNet call: bare, and with every part hooked."""

    params: int
    peak_memory_bytes: int
    thop_macs: int
    latency_s: Latency
    hooked_latency_s: Latency
    uncounted_ops: dict[str, int] = Field(default_factory=dict)


class TrustLine(Frozen):
    """One check of the trust box; `remedy` says what to do where it failed."""

    check: str
    value: str
    passed: bool
    remedy: str = ""


class ProcessRecord(Frozen):
    """What one fresh process measured of the same: the whole's seconds, and each part's share of it."""

    created_utc: str
    latency_s: Estimate
    shares: dict[str, float]
    host: HostUse | None = None


class Profile(UNetRun):
    """`asdm.profile/1`: one UNet, one runtime, one machine."""

    SCHEMA: ClassVar[str] = "asdm.profile/1"
    schema_: Literal["asdm.profile/1"] = Field("asdm.profile/1", alias="schema")
    title: str
    config_sha256: str
    latent: int  # latent pixels per side
    topology: Topology
    whole: WholeRecord
    units: tuple[PartRecord, ...]
    glue: tuple[PartRecord, ...]  # ends with `other`: what runs between the parts
    options: tuple[OptionRecord, ...] = ()
    components: tuple[ComponentRecord, ...] = ()
    steps: int = 30
    guidance_scale: float = 8.0
    peaks: Peaks | None = later(None)
    mapped_share: Estimate | None = later(None)  # of the runtime's own node time, what lies in units and glue
    observed_slowdown: Estimate | None = later(None)  # seconds of the calls that gave the part times / of bare ones
    trust: tuple[TrustLine, ...]
    host: HostUse | None = later(None)
    processes: tuple[ProcessRecord, ...] = later(())  # the profile's own first
    weights_sha256: str | None = later(None)  # where they are real ones

    def part(self, fqn: str) -> PartRecord:
        return next(part for part in (*self.units, *self.glue) if part.fqn == fqn)

    @property
    def parts(self) -> tuple[PartRecord, ...]:
        """Units and glue in data-flow order, `other` last."""
        order = {fqn: i for i, fqn in enumerate(self.flow)}
        return tuple(sorted((*self.units, *self.glue), key=lambda part: order.get(part.fqn, len(order))))

    @property
    def flow(self) -> list[str]:
        order = ["conv_in", "time_embedding"]
        for block in self.topology.blocks:
            order += [unit.fqn for unit in self.topology.units if unit.block == block]
            if block in self.topology.samplers:
                order.append(self.topology.samplers[block])
        return [*order, "conv_out"]

    @property
    def steps_batch(self) -> int:
        """UNet calls per step and image: two with classifier-free guidance."""
        return 2 if self.guidance_scale > 1 else 1

    def _repr_html_(self) -> str:
        """The answer, the blocks and the trust box, for notebooks; `asdm_prof.report` makes the whole page."""
        whole = self.whole.latency_s
        said = f"{self.title}: {whole.median:.3g} s [{whole.low:.3g}, {whole.high:.3g}] a UNet call"
        failed = ", ".join(line.check for line in self.trust if not line.passed)
        passed = f"{sum(line.passed for line in self.trust)} of {len(self.trust)} checks passed"
        where = f"{self.backend}, {self.dtype} on {self.device}, {self.threads} threads, batch {self.batch}"
        note = f"{where}; {passed}{f', failed: {failed}' if failed else ''}."
        macs, unit = mac_unit(self.whole.macs)
        head = ["block", "", "of time", "ms", unit, "M parameters"]
        return notebook.table(said, head, self._block_rows(macs), note, left=(0, 1))

    def _block_rows(self, macs: float) -> list[list[str]]:
        """One row per block, and per piece of glue outside the blocks, with a bar for its share."""
        blocks: dict[str, list[PartRecord]] = {}
        for part in self.parts:
            blocks.setdefault(part.block or part.fqn, []).append(part)
        shares = {name: sum(part.share.median for part in parts) for name, parts in blocks.items()}
        return [
            [
                name,
                notebook.bar(shares[name] / (max(shares.values()) or 1.0)),
                f"{100 * shares[name]:.1f} %",
                f"{1e3 * sum(part.latency_s.median for part in parts):.1f}",
                f"{sum(part.macs for part in parts) / macs:.2f}",
                f"{sum(part.params for part in parts) / 1e6:.2f}",
            ]
            for name, parts in blocks.items()
        ]


# ---------------------------------------------------------------------------------------------- validation


class ValidatedPlan(Frozen):
    """One random plan: what was predicted, and what its student measured in pairs with the teacher."""

    predicted_ratio: float
    low: float  # the prediction's 95 % interval
    high: float
    measured_ratio: float
    measured_low: float
    measured_high: float
    saves: dict[str, float]  # kind of edit (`op`) → what it was predicted to save, as a share of the teacher
    teacher_s: tuple[float, ...]  # raw samples; the i-th of both are neighbours
    student_s: tuple[float, ...]
    edits: tuple[AnyEdit, ...]

    @property
    def error(self) -> float:
        """Measured less predicted, as a fraction of the teacher's latency."""
        return self.measured_ratio - self.predicted_ratio


class Correction(Frozen):
    """What the errors teach: a student is slower than predicted by `factors[op]` of what edits of that kind save."""

    factors: dict[str, float]
    rms_without: float
    rms_with: float  # leave-one-out: each plan is corrected by what the others taught
    helps: bool  # whether that is less


class Validation(UNetRun):
    """`asdm.validate/1`: predicted against measured on random legal plans; errors are fractions of the teacher."""

    SCHEMA: ClassVar[str] = "asdm.validate/1"
    schema_: Literal["asdm.validate/1"] = Field("asdm.validate/1", alias="schema")
    teacher_config_sha256: str
    profile_sha256: str
    mape: float  # mean absolute error
    p95: float  # 95 % of the absolute errors are below it
    bias: float  # mean error; above 0: students are slower than predicted
    coverage: float  # how often the prediction's 95 % interval held
    rank_correlation: float
    correction: Correction
    sigma: float  # root mean square error of a prediction, corrected where that helps
    calibrated_coverage: float  # as `coverage`, with intervals from the other plans' errors
    within_budget: float  # how often the tightest budget accepted at confidence 0.95 held, from the other plans
    plans: tuple[ValidatedPlan, ...]

    @property
    def factors(self) -> dict[str, float]:
        """The correction that cross-validation approved; empty where it helped nothing."""
        return self.correction.factors if self.correction.helps else {}


# ---------------------------------------------------------------------------------------------- comparison


class ComparedProfile(Frozen):
    """One profile of a comparison; `name` says in what it differs from the others."""

    name: str
    source: str
    sha256: str
    measured_at: MeasuredAt
    latency_s: Estimate
    split_half: float  # rank correlation of its own odd and even runs: no other profile can agree better than this


class ComparedPlan(Frozen):
    """One plan priced by every profile of a comparison, in their order; None where it timed no such replacement."""

    name: str
    made_for: int | None  # the profile it was made from, where that is one of them
    budget_ratio: float | None
    predicted: tuple[Prediction | None, ...]


class Comparison(Record):
    """`asdm.compare/1`: does a plan made for one runtime, dtype, thread count, size or batch hold in another?"""

    SCHEMA: ClassVar[str] = "asdm.compare/1"
    schema_: Literal["asdm.compare/1"] = Field("asdm.compare/1", alias="schema")
    created_utc: str
    command: str
    family: str
    config_sha256: str
    profiles: tuple[ComparedProfile, ...]
    spearman: tuple[tuple[float, ...], ...]  # of the units' redundancy, profile by profile
    plans: tuple[ComparedPlan, ...] = ()


# ---------------------------------------------------------------------------------------------- damage


class Work(Frozen):
    """What a run of `sensitivity` took, in the teacher's forwards (by MACs) and in seconds."""

    students: int
    plain_forwards: float  # of the loop that runs every student from the start
    least_forwards: float  # every distinct beginning of a forward once
    done_forwards: float
    seconds: float  # of everything, loading included
    forward_s: float  # of those, inside the UNets
    least_s: float  # what the least forwards took of that
    reached: float  # least_s / seconds: 1 would be a run that does nothing but the least


class Interval(Frozen):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class EditDamage(Frozen):
    """One edit, with what must go along for it to be legal, and what it does to the output."""

    edit: AnyEdit
    also: tuple[AnyEdit, ...] = ()
    damage: Interval  # mean square error of the output per element
    by_prompt: tuple[float, ...]
    by_timestep: tuple[float, ...]
    clip_score_change: Interval | None = None  # of pictures drawn from the same seeds, less the teacher's

    @property
    def edits(self) -> tuple[AnyEdit, ...]:
        return (self.edit, *self.also)


class DamagePair(Frozen):
    """Two edits by their places in the list, and the damage of both beyond the sum of each."""

    first: int
    second: int
    damage: float


class JointDamage(Frozen):
    """One random plan: what the edits' damages predict, by their sum and with pairs, and what its student does."""

    edits: tuple[AnyEdit, ...]
    summed: float
    with_pairs: float
    damage: Interval


class Fit(Frozen):
    """How well predictions order and meet measured joint damages; intervals by bootstrap over plans."""

    spearman: Interval
    r2: Interval  # of the predictions as they are: 1 − squared errors / variance
    r2_line: Interval  # of the best straight line through them: the squared correlation


class Additivity(Frozen):
    """Can damages be added up? The planner's way of predicting, and both ways with intervals."""

    spearman: float
    r2: float
    used: Literal["sum", "pairs"]  # what the planner predicts by: the sum where it does, else with pairs
    summed: Fit
    with_pairs: Fit
    plans: tuple[JointDamage, ...]


class Agreement(Frozen):
    """Rank correlation of a cheap score with measured damage over single edits: what it is worth without weights."""

    score: str
    spearman: Interval
    edits: int


class Damage(Record):
    """`asdm.damage/1`: what each legal edit does to a teacher's output, and whether that adds up."""

    SCHEMA: ClassVar[str] = "asdm.damage/1"
    schema_: Literal["asdm.damage/1"] = Field("asdm.damage/1", alias="schema")
    created_utc: str
    command: str
    family: str
    weights: str
    weights_sha256: str
    teacher_config_sha256: str
    data: str
    split: str
    prompts: int
    timesteps: tuple[int, ...]
    seed: int
    dtype: str
    device: str
    threads: int
    size: int
    prediction_type: str  # what the output is: epsilon or v_prediction
    teacher_power: float  # mean square of the teacher's output per element, to set damages in relation to
    edits: tuple[EditDamage, ...]
    pairs: tuple[DamagePair, ...] = ()  # empty where the sum does
    additivity: Additivity | None = None
    agreement: tuple[Agreement, ...] = ()
    work: Work
    environment: dict[str, str]


class FrontierPoint(Frozen):
    """One plan that no other beats in both latency and damage, as the profile prices it."""

    latency_s: float
    ratio: float
    macs: float  # shares of the teacher's
    params: float
    damage: float
    edits: tuple[AnyEdit, ...]


class Frontier(Record):
    """`asdm.frontier/1`: every plan that no other beats, the teacher first; the best and unlike ones within budgets."""

    SCHEMA: ClassVar[str] = "asdm.frontier/1"
    schema_: Literal["asdm.frontier/1"] = Field("asdm.frontier/1", alias="schema")
    family: str
    teacher_config_sha256: str
    by: str  # what stands against damage: latency, macs or params
    budgets: dict[str, float]  # shares of the teacher's
    complete: bool  # False: under budgets besides, walked in steps
    damage_from: str
    profile_sha256: str
    damage_sha256: str | None = None
    points: tuple[FrontierPoint, ...]
    best: tuple[FrontierPoint, ...] = ()
    diverse: tuple[FrontierPoint, ...] = ()
    apart: int  # choices in which two of `diverse` differ at least

    def cost(self, point: FrontierPoint) -> float:
        """What stands against a plan's damage here, as a share of the teacher's."""
        return {"macs": point.macs, "params": point.params}.get(self.by, point.ratio)


# ---------------------------------------------------------------------------------------------- budgets


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


class Budgets(Record):
    """`asdm.budgets/1`: our plan against all baselines at each budget, on measured joint damage."""

    SCHEMA: ClassVar[str] = "asdm.budgets/1"
    schema_: Literal["asdm.budgets/1"] = Field("asdm.budgets/1", alias="schema")
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


# ---------------------------------------------------------------------------------------------- proof


class Judged(Frozen):
    """One metric of one set of pictures, with what its interval and its paired differences are made of.

    `samples` has a value a picture, or the distance of each random half of the pictures; every row of a proof has the
    same captions and the same halves in the same order.
    """

    value: float
    of: Literal["pictures", "halves"]
    samples: tuple[float, ...]


class ProofResult(Frozen):
    """One student: a row trained from one seed. The teacher, who is not trained, has one with seed None."""

    seed: int | None
    seconds: float  # of training steps, on whatever else the machine did meanwhile
    pictures: int  # seen in training, repeats included
    peak_memory_bytes: int  # counted: weights, encoders, gradients, moments, average, activations
    trainable: int  # parameters of the last stage that learn
    student_sha256: str | None
    metrics: dict[str, Judged]


class ProofLatency(Frozen):
    """Paired UNet calls of a student and its teacher, in the order they were taken."""

    plan_sha256: str
    ratio: Estimate  # the median's
    mean_ratio: Estimate
    student_s: tuple[float, ...]
    teacher_s: tuple[float, ...]


class ProofRow(Frozen):
    """One way to make a student, and what came of it."""

    name: str
    what: str
    plan_name: str
    recipe: str  # "" for the teacher
    rival: str | None  # the row that it is compared with at its own latency
    ablates: str | None  # the row that it is but for one thing
    plan_sha256: str | None
    edits: tuple[AnyEdit, ...]
    params: int
    macs: int
    predicted_ratio: float | None
    latency: ProofLatency | None = None
    results: tuple[ProofResult, ...] = ()


class ProofTiming(Frozen):
    """How the latencies of a proof were measured."""

    created_utc: str
    command: str
    backend: str
    threads: int
    batch: int
    environment: dict[str, str]


class Proof(Record):
    """`asdm.proof/1`: students of one teacher, made in several ways from equal training, and what each is worth."""

    SCHEMA: ClassVar[str] = "asdm.proof/1"
    schema_: Literal["asdm.proof/1"] = Field("asdm.proof/1", alias="schema")
    created_utc: str
    command: str
    family: str
    teacher_config_sha256: str
    weights_sha256: str
    profile_sha256: str
    damage_sha256: str
    identity: dict[str, JsonValue]  # what all rows have alike: training, captions, drawing, budget
    noise: dict[str, Judged]  # the teacher with other seeds
    rows: tuple[ProofRow, ...]
    timing: ProofTiming | None = None
    environment: dict[str, str]

    def row(self, name: str) -> ProofRow | None:
        return next((row for row in self.rows if row.name == name), None)


# ---------------------------------------------------------------------------------------------- search


class Rung(Frozen):
    """A rung of successive halving: how many candidates reach it, and how long each has trained at its end."""

    candidates: int
    steps: int


class SearchedStudent(Frozen):
    """A candidate as it was last measured."""

    candidate: int
    rung: int
    steps: int  # of training
    edits: tuple[AnyEdit, ...]
    plan_sha256: str
    predicted: Prediction
    damage: float  # as planned: before any training
    ratio: Estimate  # measured UNet latency, student / teacher, in pairs
    student_s: tuple[float, ...]
    teacher_s: tuple[float, ...]
    macs: int
    params: int
    quality: dict[str, Metric]
    within_budget: bool
    in_front: bool  # no other student is both faster and better
    host: str  # a hash of the name of the machine that trained it
    folder: str  # the student's, below the output folder of that machine


class Search(UNetRun):
    """`asdm.search/1`: students that were planned, trained by successive halving, and measured; the best first."""

    SCHEMA: ClassVar[str] = "asdm.search/1"
    schema_: Literal["asdm.search/1"] = Field("asdm.search/1", alias="schema")
    study: str
    teacher_config_sha256: str
    weights_sha256: str
    profile_sha256: str
    damage_sha256: str | None
    budget: str
    budget_ratio: float
    metric: str  # by which students are ranked
    maximise: bool
    recipe: str
    data: str
    split: str
    learning_rate: float
    training_batch: int
    pictures: int
    rungs: tuple[Rung, ...]
    training_steps: int  # of all candidates together
    trials: dict[str, int]  # how the attempts ended
    students: tuple[SearchedStudent, ...]
    failed: dict[str, str] = Field(default_factory=dict)  # candidate → why it has no measurement

    def front(self) -> tuple[SearchedStudent, ...]:
        """The students that no other beats in both latency and quality, the fastest first."""
        return tuple(sorted((one for one in self.students if one.in_front), key=lambda one: one.ratio.median))


# ---------------------------------------------------------------------------------------------- training

# What a line of `asdm distill`'s log holds besides loss terms.
NOT_TERMS = ("step", "stage_step", "learning_rate", "gradient_norm", "step_s", "images_per_s")


class TrainingLog(Frozen):
    """A run of `asdm distill`: every loss term, step by step, and the step with which each stage begins."""

    steps: tuple[int, ...]
    terms: dict[str, tuple[float | None, ...]]
    stages: dict[str, int] = Field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> TrainingLog:
        """Read a `log.jsonl`; a last line that is still being written is left out.

        Raises ValueError where the file is missing, or no line of it is a step of a training.
        """
        if not path.is_file():
            raise ValueError(f"{path} is no file; name the log.jsonl of an `asdm distill` run.")
        lines = [line for line in map(_line, path.read_text(encoding="utf-8", errors="replace").splitlines()) if line]
        rows = [_numbers(line) for line in lines]
        names = list(dict.fromkeys(name for row in rows for name in row if name not in NOT_TERMS))
        if not names:
            raise ValueError(f"{path} has no line with a step and a loss; name the log.jsonl of an `asdm distill` run.")
        stages: dict[str, int] = {}
        for line in lines:
            if line.get("stage"):
                stages.setdefault(str(line["stage"]), int(line["step"]))
        terms = {name: tuple(row.get(name) for row in rows) for name in names}
        return cls(steps=tuple(int(row["step"]) for row in rows), terms=terms, stages=stages)


def _line(text: str) -> dict[str, Any]:
    """One line of a log, empty where it is no step."""
    try:
        found = json.loads(text, parse_constant=lambda _: None)
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("step"), (int, float)) else {}


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in line.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
