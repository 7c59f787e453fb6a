"""What a proof says: every row with its intervals, paired differences, and the sentences that follow from them.

An interval is made of what the pictures leave open (a bootstrap of them, or random halves for distances of sets) and of
what the training seeds do (Student's t of their spread), drawn together. Pictures are paired: all rows draw the same
captions from the same noise. With one training seed the second part is missing, and every table says so.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from asdm.measure.statistics import bootstrap
from asdm.records.bench import MEASURES, Measure
from asdm.records.measurement import Estimate
from benchmarks import equivalence
from benchmarks.equivalence import EQUIVALENT, Spread, spread_of
from benchmarks.proof.records import Proof, ProofRow

# The perceptual distance is left out: its VGG has trained the paper's rows, so it cannot judge them.
JUDGES = tuple(measure for measure in MEASURES.values() if measure.name != "perceptual_to_teacher")
NOT_COUNTED = ("kernel_distance",)  # in the verdict: it says what the Fréchet distance does
HALF = 0.5  # of a rival's loss: the aim
LEAST_WON = 3  # of four metrics
SURE, POWER = 1.96, 0.84  # normal quantiles: of a 95 % interval, and of seeing an effect in 4 of 5 repetitions

# ---------------------------------------------------------------------------------------------- one row


def spread(row: ProofRow, measure: str, seeds: bool = True) -> Spread | None:
    """A row's metric over its seeds; None where it was not judged. Without `seeds`, draws are of pictures alone."""
    each = [spread_of(result.metrics[measure]) for result in row.results if measure in result.metrics]
    return over_seeds(each, f"{row.name} {measure}", seeds) if each else None


def over_seeds(each: Sequence[Spread], what: str, seeds: bool = True) -> Spread:
    """The mean over training seeds of what `what` names; its draws have the seeds' part too, by Student's t."""
    values = np.array([one.value for one in each])
    draws = np.mean([one.draws for one in each], axis=0)
    if seeds and len(values) > 1:
        rng = np.random.default_rng(zlib.crc32(what.encode()))
        error = values.std(ddof=1) / math.sqrt(len(values))
        draws = draws + error * rng.standard_t(len(values) - 1, len(draws))
    return Spread(float(values.mean()), draws)


def noise_floor(proof: Proof, measure: str) -> float:
    """How far the teacher is from itself with other seeds."""
    again, teacher = proof.noise.get(measure), spread(proof.rows[0], measure)
    return abs(again.value - teacher.value) if again and teacher else 0.0


def judged_measures(proof: Proof) -> list[Measure]:
    """Those that this proof has: R@1 needs 200 captions."""
    return [measure for measure in JUDGES if measure.name in proof.rows[0].results[0].metrics]


def counted_measures(proof: Proof) -> list[Measure]:
    """Those that tables and verdicts have."""
    return [measure for measure in judged_measures(proof) if measure.name not in NOT_COUNTED]


def loss(proof: Proof, row: ProofRow, measure: Measure) -> Spread | None:
    """How much worse than the teacher's a row's pictures are; below 0 they are better."""
    ours, teacher = spread(row, measure.name), spread(proof.rows[0], measure.name)
    if ours is None or teacher is None:
        return None
    return teacher - ours if measure.more_is_better else ours - teacher


def trained(proof: Proof) -> list[ProofRow]:
    """The students that there are results of."""
    return [row for row in proof.rows[1:] if row.results]


def beside_teacher(proof: Proof) -> list[ProofRow]:
    """The students that were judged by as many pictures as the teacher; ablations are compared among themselves."""
    return [row for row in trained(proof) if row.results[0].drawn == proof.pictures]


def seconds(row: ProofRow) -> float:
    """Of one training: the least of its seeds', since a training that shares its machine or is stopped takes longer."""
    return min(result.seconds for result in row.results)


# ---------------------------------------------------------------------------------------------- against a rival


@dataclass(frozen=True)
class Share:
    """What a row loses against the teacher, in one metric, beside what its rival loses."""

    measure: Measure
    ours: Estimate
    theirs: Estimate
    more: Estimate  # ours less theirs: above 0 we are worse
    share: Estimate | None  # of the rival's loss; None where the rival lost nothing

    @property
    def below_half(self) -> bool:
        return self.share is not None and self.share.median < HALF and self.ours.median < self.theirs.median

    @property
    def worse(self) -> bool:
        return self.more.median > 0


@dataclass(frozen=True)
class Verdict:
    """A row against its rival at the same latency."""

    row: ProofRow
    rival: ProofRow
    shares: tuple[Share, ...]

    @property
    def won(self) -> list[Share]:
        return [share for share in self.counted if share.below_half]

    @property
    def lost(self) -> list[Share]:
        return [share for share in self.counted if share.worse]

    @property
    def counted(self) -> list[Share]:
        return [share for share in self.shares if share.measure.name not in NOT_COUNTED]

    @property
    def met(self) -> bool:
        """Below half of the rival's loss in at least three of four."""
        return len(self.won) >= LEAST_WON


def verdicts(proof: Proof) -> list[Verdict]:
    """Every row that has a rival, where both have results."""
    pairs = [(row, proof.row(row.rival)) for row in trained(proof) if row.rival]
    both = [(row, rival) for row, rival in pairs if rival and rival.results]
    return [Verdict(row, rival, tuple(_shares(proof, *alike(row, rival)))) for row, rival in both]


def alike(row: ProofRow, other: ProofRow) -> tuple[ProofRow, ProofRow]:
    """Two rows with the training seeds that both have, or as they are where they share none."""
    seeds = {one.seed for one in row.results} & {one.seed for one in other.results}
    if not seeds:
        return row, other
    both = (tuple(one for one in each.results if one.seed in seeds) for each in (row, other))
    first, second = (each.model_copy(update={"results": kept}) for each, kept in zip((row, other), both, strict=True))
    return first, second


def _shares(proof: Proof, row: ProofRow, rival: ProofRow) -> Iterator[Share]:
    for measure in judged_measures(proof):
        ours, theirs = loss(proof, row, measure), loss(proof, rival, measure)
        if ours is None or theirs is None:
            continue
        share = (ours / theirs).estimate() if theirs.estimate().low > 0 else None
        yield Share(measure, ours.estimate(), theirs.estimate(), (ours - theirs).estimate(), share)


# ---------------------------------------------------------------------------------------------- equal to the teacher


@dataclass(frozen=True)
class Equivalence:
    """Whether a row can be told from its teacher in one metric, by the pictures and the mean of the seeds."""

    measure: Measure
    difference: Estimate  # the row's less the teacher's; the interval is of pictures alone
    seeds: tuple[float, float]  # the least and the greatest difference of a seed
    margin: float

    @property
    def shown(self) -> bool:
        return equivalence.within(self.difference, self.margin)

    @property
    def worst(self) -> float:
        """By how much the row may be worse, as a share of what is allowed; below 0, it is better."""
        worst = -self.difference.low if self.measure.more_is_better else self.difference.high
        return worst / self.margin

    @property
    def verdict(self) -> str:
        """The row beside its teacher: equal, better, not worse beyond what is allowed, or none of these shown."""
        if self.shown:
            return "equal"
        return "better" if self.worst < 0 else "not worse" if self.worst < 1 else "not shown"


def margin(proof: Proof, measure: Measure) -> float:
    """The difference from the teacher that equivalence allows."""
    teacher = spread(proof.rows[0], measure.name)
    assert teacher is not None, "the teacher is judged first"
    return equivalence.margin(measure.name, teacher.value)


def equivalences(proof: Proof, row: ProofRow) -> list[Equivalence]:
    """A row beside its teacher, in every metric that equivalence is told by."""
    compared = []
    for measure in counted_measures(proof):
        ours, teacher = (spread(one, measure.name, seeds=False) for one in (row, proof.rows[0]))
        if measure.name in EQUIVALENT and ours and teacher:
            values = [result.metrics[measure.name].value - teacher.value for result in row.results]
            extremes = (min(values), max(values))
            compared.append(Equivalence(measure, (ours - teacher).estimate(), extremes, margin(proof, measure)))
    return compared


def our_rows(proof: Proof) -> list[ProofRow]:
    """The trained rows that are to be their teacher's equal."""
    return [row for row in trained(proof) if row.name.startswith("ours")]


def equivalence_sentences(proof: Proof) -> list[str]:
    """One of each of our rows."""
    return [_equivalence_sentence(row, equivalences(proof, row)) for row in our_rows(proof)]


def _equivalence_sentence(row: ProofRow, compared: Sequence[Equivalence]) -> str:
    """In which metrics a row cannot be told from its teacher, in which it is better, and in which neither is shown."""
    parts = [_difference_text(one) for one in compared]
    if all(one.shown for one in compared):
        claim = "is the teacher’s equal"
    elif all(one.worst < 1 for one in compared):
        claim = "is not worse than the teacher beyond what is allowed, and not its equal in all"
    else:
        claim = "is not shown to be the teacher’s equal"
    return f"{row.name}{_at(row)} {claim}: {'; '.join(parts)}."


def _difference_text(one: Equivalence) -> str:
    difference, (least, greatest) = one.difference, one.seeds
    text = f"{one.measure.title} {difference.median:+.3g} [{difference.low:+.3g}, {difference.high:+.3g}], "
    text += f"seeds {least:+.3g} to {greatest:+.3g}, allowed ±{one.margin:.3g}"
    return f"{text}: {one.verdict}"


# ---------------------------------------------------------------------------------------------- what a component buys


@dataclass(frozen=True)
class Component:
    """What a row has that its ablation lacks: quality that it buys (above 0: it helps), and what it costs.

    Differences are paired by picture and by training seed, since all rows of a seed learn from the same batches.
    """

    row: ProofRow  # the ablation
    base: ProofRow
    bought: dict[str, Estimate]
    latency: Spread | None  # ratio more
    seconds: float  # of training, more

    @property
    def effect(self) -> str:
        """Whether what the ablation lacks bought anything beyond its interval, in the metrics that count."""
        counted = [one for name, one in self.bought.items() if name not in NOT_COUNTED]
        helped, hurt = any(one.low > 0 for one in counted), any(one.high < 0 for one in counted)
        if helped and hurt:
            return "helped and hurt"
        return "helped" if helped else "hurt" if hurt else "not told apart"


def components(proof: Proof) -> list[Component]:
    """Every ablation, where both it and what it ablates have results."""
    pairs = [(row, proof.row(row.ablates)) for row in trained(proof) if row.ablates]
    return [_component(proof, row, base) for row, base in pairs if base and base.results]


def _component(proof: Proof, row: ProofRow, base: ProofRow) -> Component:
    bought, (ours, theirs) = {}, alike(row, base)
    for measure in judged_measures(proof):
        bought[measure.name] = _less_of(measure, ours, theirs).estimate()
    with_latency, without_latency = latency(base), latency(row)
    more = with_latency - without_latency if with_latency and without_latency else None
    same = bool(base.latency and row.latency and base.latency.plan_sha256 == row.latency.plan_sha256)
    return Component(row, base, bought, None if same else more, seconds(base) - seconds(row))


def _less_of(measure: Measure, row: ProofRow, base: ProofRow) -> Spread:
    """How much worse a row is than another of the same seeds."""
    pairs = [(spread_of(one.metrics[measure.name]), spread_of(other.metrics[measure.name]))
             for one, other in zip(row.results, base.results, strict=False)]  # fmt: skip
    differences = [with_it - without if measure.more_is_better else without - with_it for without, with_it in pairs]
    return over_seeds(differences, f"{row.name} {base.name} {measure.name}")


def latency(row: ProofRow) -> Spread | None:
    """A row's latency as a ratio to the teacher's: the median over its pairs."""
    if row.latency is None:
        return None
    pairs = np.array(row.latency.student_s) / np.array(row.latency.teacher_s)
    return Spread(row.latency.ratio.median, np.asarray(bootstrap(pairs)))


# ---------------------------------------------------------------------------------------------- in words


def titles(names: Iterable[str]) -> str:
    """Metrics' names for people."""
    return ", ".join(MEASURES[name].title for name in names)


def verdict_sentence(verdict: Verdict) -> str:
    """What was won and what was not, whichever it is."""
    parts = [_share_text(share) for share in verdict.counted]
    won, lost = verdict.won, verdict.lost
    sentence = f"{verdict.row.name}{_at(verdict.row)} against {verdict.rival.name}{_at(verdict.rival)}: "
    sentence += "; ".join(parts) + ". "
    sentence += f"Below half of its rival’s loss in {len(won)} of {len(verdict.counted)}"
    sentence += f" ({titles(share.measure.name for share in won)})" if won else ""
    sentence += f", worse in {titles(share.measure.name for share in lost)}" if lost else ", worse in none"
    return sentence + f": the aim is {'met' if verdict.met else 'not met'}."


def _at(row: ProofRow) -> str:
    latency = row.latency
    return f" at {latency.ratio.median:.3f}× [{latency.ratio.low:.3f}, {latency.ratio.high:.3f}]" if latency else ""


def _share_text(share: Share) -> str:
    title = share.measure.title
    if share.share is None:
        return f"{title}: its rival’s loss is within its interval of none"
    return f"{title}: {share.share.median:.2f} [{share.share.low:.2f}, {share.share.high:.2f}] of its rival’s loss"


# ---------------------------------------------------------------------------------------------- as a table


def table(proof: Proof) -> list[dict[str, str]]:
    """Every row with what it costs and what it is worth, in words and figures."""
    rows = [proof.rows[0], *beside_teacher(proof)]
    measures = counted_measures(proof)
    cells = [_row(row, measures, proof.rows[0]) for row in rows]
    floor = dict.fromkeys(cells[0], "") | {"row": "noise floor"}
    return [*cells, floor | {measure.title: _figure(noise_floor(proof, measure.name)) for measure in measures}]


def _row(row: ProofRow, measures: Sequence[Measure], teacher: ProofRow) -> dict[str, str]:
    is_teacher, timed = row is teacher, row.latency
    trained_on = f"{len(row.results)} × {row.results[0].pictures:,}"
    texts = {
        "row": row.name,
        "UNet ×": "1" if is_teacher else "" if timed is None else _interval(timed.ratio),
        "M parameters": f"{row.params / 1e6:.2f}",
        "seeds × pictures": "" if is_teacher else trained_on,
    }
    for measure in measures:
        one = spread(row, measure.name)
        texts[measure.title] = "" if one is None else _interval(one.estimate())
    return texts


def parts_table(proof: Proof) -> list[dict[str, str]]:
    """What each of the paper's parts, or its way of making it, buys over what an ablation has instead."""
    measures = counted_measures(proof)
    return [
        {
            "row": one.row.name,
            "changed": one.row.what,
            **{measure.title: _bought(one.bought[measure.name]) for measure in measures},
            "UNet ×": "" if one.latency is None else f"{one.latency.value:+.3f}",
            "the part": one.effect,
        }
        for one in components(proof)
    ]


def _bought(estimate: Estimate) -> str:
    signed = [f"{value:+.2g}" for value in (estimate.median, estimate.low, estimate.high)]
    return f"{signed[0]} [{signed[1]}, {signed[2]}] ±{smallest_effect((estimate.high - estimate.low) / 2):.2g}"


def parts_sentence(proof: Proof) -> str:
    """How to read the table of parts."""
    compared = sum(len(counted_measures(proof)) for _ in components(proof))
    return (
        "What each part buys: how much worse the row without it is (above 0: the part helps), with the 95 % interval, "
        "and behind ± the smallest effect that 4 of 5 repetitions would show; UNet × is the latency that it costs. "
        f"Differences are paired by picture and training seed; of {compared} comparisons, about {compared / 20:.0f} "
        "are beyond their interval by chance."
    )


def _interval(estimate: Estimate) -> str:
    return f"{_figure(estimate.median)} [{_figure(estimate.low)}, {_figure(estimate.high)}]"


def _figure(value: float) -> str:
    return f"{value:#.3g}" if value else "0"


def markdown(proof: Proof, source: str) -> str:
    """The table, the verdicts and what each component bought, as Markdown; `source` names the proof's file."""
    rows = table(proof)
    lines = [_line(rows[0]), _line(["---"] * len(rows[0])), *(_line(row.values()) for row in rows), ""]
    lines += [f"From `{source}`; 95 % intervals over pictures and seeds ({seeds_text(proof)}).", ""]
    lines += [f"- {_safe(verdict_sentence(verdict))}" for verdict in verdicts(proof)]
    lines += [f"- {_safe(sentence)}" for sentence in equivalence_sentences(proof)]
    if parts := parts_table(proof):
        lines += ["", parts_sentence(proof), ""]
        lines += [_line(parts[0]), _line(["---"] * len(parts[0])), *(_line(part.values()) for part in parts)]
    return "\n".join(lines).rstrip() + "\n"


def smallest_effect(half_width: float) -> float:
    """That is beyond a 95 % interval of this half width in 4 of 5 repetitions."""
    return half_width * (SURE + POWER) / SURE


def seeds_text(proof: Proof) -> str:
    """How many seeds the rows have, and what that leaves out."""
    counts = [len(row.results) for row in trained(proof)] or [0]
    if max(counts) < 2:
        return "1 seed, so what training seeds do is not in the intervals"
    if min(counts) == max(counts):
        return f"{max(counts)} seeds"
    some = "; with 1, what training seeds do is not in the intervals" if min(counts) < 2 else ""
    return f"{min(counts)} to {max(counts)} seeds{some}; rows are compared by the seeds that both have"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_safe, cells))} |"


def _safe(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
