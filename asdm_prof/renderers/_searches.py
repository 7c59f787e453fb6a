"""What a search found, in sentences; private, shared by the renderers of this folder."""

from __future__ import annotations

from asdm_prof.records import Search
from asdm_prof.renderers._format import metric_name, number, plain, ratio, ratio_interval


def answer(found: Search) -> str:
    """The best student within the budget in one sentence."""
    best = next((one for one in found.students if one.within_budget), None)
    if best is None:
        return f"{plain(found.family)}: no student that was measured is within the budget {plain(found.budget)}."
    mark = best.quality[found.metric]
    return (
        f"{plain(found.family)} within {plain(found.budget)}: candidate {best.candidate} is best, at "
        f"{ratio(best.ratio.median)} {ratio_interval(best.ratio)} of the teacher's latency, "
        f"{metric_name(found.metric)} {number(mark.value)} [{number(mark.low)}, {number(mark.high)}] after "
        f"{best.steps} steps."
    )


def rungs(found: Search) -> str:
    """How many candidates trained to which step, rung by rung."""
    return ", ".join(f"{rung.candidates} to step {rung.steps}" for rung in found.rungs)


def lines(found: Search) -> list[str]:
    """What it took, what failed, and where the front's students are."""
    trials = ", ".join(f"{n} {fate}" for fate, n in found.trials.items() if n)
    floor = next((one.quality[found.metric].noise_floor for one in found.students), None)
    said = [f"Trained {rungs(found)}: {found.training_steps} steps in all. Trials: {trials}."]
    if floor is not None:
        better = "more" if found.maximise else "less"
        said.append(
            f"Quality is {metric_name(found.metric)}, of which {better} is better; its noise floor is {number(floor)}."
        )
    said += [f"Candidate {name} has no measurement: {plain(why)}" for name, why in found.failed.items()]
    said += [f"Candidate {one.candidate}: {plain(one.folder)} (machine {plain(one.host)})" for one in found.front()]
    return said
