"""A row beside its rival at the same latency: in how many metrics it loses less than half of what the rival loses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from asdm.records.bench import Measure
from asdm.records.measurement import Estimate
from benchmarks.proof.evidence.spreads import NOT_COUNTED, alike, judged_measures, loss, trained
from benchmarks.proof.evidence.words import at, titles
from benchmarks.proof.records import Proof, ProofRow

HALF = 0.5  # of a rival's loss: the aim
LEAST_WON = 3  # of four metrics


@dataclass(frozen=True)
class Share:
    """What a row loses against the teacher, in one metric, beside what its rival loses."""

    measure: Measure
    ours: Estimate
    theirs: Estimate
    more: Estimate  # ours less theirs: above 0 we are worse
    beyond_half: Estimate  # ours less half of theirs: below 0 the aim is met
    share: Estimate | None  # of the rival's loss; None where the rival's is within its interval of none

    @property
    def below_half(self) -> bool:
        """With its whole interval, of a loss that there is."""
        return self.theirs.low > 0 and self.beyond_half.high < 0

    @property
    def worse(self) -> bool:
        return self.more.low > 0


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
    def slower(self) -> bool:
        """Whether the row takes longer than its rival, beyond both intervals."""
        ours, theirs = self.row.latency, self.rival.latency
        return bool(ours and theirs and ours.ratio.low > theirs.ratio.high)

    @property
    def met(self) -> bool:
        """Below half of the rival's loss in at least three of four, and no slower."""
        return len(self.won) >= LEAST_WON and not self.slower


def verdicts(proof: Proof) -> list[Verdict]:
    """Every row that has a rival, where both have results of the same seeds."""
    rivals = [(row, proof.row(row.rival)) for row in trained(proof) if row.rival]
    pairs = [(row, rival, alike(row, rival)) for row, rival in rivals if rival]
    return [Verdict(row, rival, tuple(_shares(proof, *both))) for row, rival, both in pairs if both]


def _shares(proof: Proof, row: ProofRow, rival: ProofRow) -> Iterator[Share]:
    for measure in judged_measures(proof):
        ours, theirs = loss(proof, row, measure), loss(proof, rival, measure)
        if ours is None or theirs is None:
            continue
        share = (ours / theirs).estimate() if theirs.estimate().low > 0 else None
        more, beyond_half = (ours - theirs).estimate(), (ours - theirs * HALF).estimate()
        yield Share(measure, ours.estimate(), theirs.estimate(), more, beyond_half, share)


def verdict_sentence(verdict: Verdict) -> str:
    """What was won and what was not, whichever it is."""
    parts = [_share_text(share) for share in verdict.counted]
    won, lost = verdict.won, verdict.lost
    sentence = f"{verdict.row.name}{at(verdict.row)} against {verdict.rival.name}{at(verdict.rival)}: "
    sentence += "; ".join(parts) + ". "
    sentence += f"With the whole interval below half of its rival’s loss in {len(won)} of {len(verdict.counted)}"
    sentence += f" ({titles(share.measure for share in won)})" if won else ""
    sentence += f", worse in {titles(share.measure for share in lost)}" if lost else ", worse in none"
    sentence += ", but slower" if verdict.slower else ""
    return sentence + f": the aim is {'met' if verdict.met else 'not met'}."


def _share_text(share: Share) -> str:
    title = share.measure.title
    if share.share is None:
        return f"{title}: its rival’s loss is within its interval of none"
    return f"{title}: {share.share.median:.2f} [{share.share.low:.2f}, {share.share.high:.2f}] of its rival’s loss"
