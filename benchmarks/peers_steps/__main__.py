"""`python -m benchmarks.peers_steps`: draw, time and compare; what was drawn is kept beside the output and resumed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from asdm.data import datasets
from asdm.evaluate.generation import DRAWN_AT_ONCE, GeneratedImages, decode_latents
from asdm.evaluate.quality import Judgement
from asdm.measure import clocks, machine, repeats
from asdm.measure.statistics import estimate, paired_ratio
from asdm.models import loading, networks
from asdm.models.families import Family, load_family
from asdm.models.pipeline import pipeline
from asdm.models.settings import PictureSetup
from asdm.models.sources import own_weights
from asdm.records.levers import Levers
from asdm.records.measurement import Estimate
from asdm.schedule import source
from asdm.schedule.calls import calls_of
from asdm.schedule.schedule import TEACHER, Schedule, by_name
from asdm.utils import console, io, registry
from asdm.utils.progress import Tell
from asdm.utils.record import sha256_of
from benchmarks import script
from benchmarks.equivalence import EQUIVALENT, Judged, margin, spread_of, within
from benchmarks.peers_steps.contestants import Contestant, all_of, in_runtime, installed, planned, student_alone
from benchmarks.peers_steps.records import Beside, Drawn, Duel, PeersSteps

SPLIT, SEED = "train", 20_000
NO_PEERS = ("ours", "student", "levers", "diffusers")
TITLES = {"frechet_distance": "Fréchet", "clip_score": "CLIP score", "recall_at_1": "R@1"}
Latents = dict[str, torch.Tensor]
Times = tuple[list[float], list[float]]  # of an image, and of the plain one beside it


def main(
    schedule: Annotated[list[Path] | None, typer.Option(help="A schedule of ours; may be repeated.")] = None,
    student: Annotated[
        str | None,
        typer.Option(help="A student's folder or plan, which draws alone and, beside the teacher, in --fast."),
    ] = None,
    fast: Annotated[
        list[str] | None,
        typer.Option(help="A schedule file or preset that teacher and --student run in --runtime; may be repeated."),
    ] = None,
    runtime: Annotated[str, typer.Option(help="Runtime of --fast: openvino or onnxruntime.")] = "openvino",
    precision: Annotated[
        list[str] | None, typer.Option(help="What it computes in: fp32 (the default) or bf16; may be repeated.")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="A contestant to leave out, such as PAB; may be repeated.")
    ] = None,
    pictures: Annotated[int, typer.Option(help="Pictures that each contestant draws.")] = 500,
    rounds: Annotated[int, typer.Option(help="Rounds of whole images; each is two pairs.")] = 5,
    seconds: Annotated[float, typer.Option(help="Stop drawing after so long; the same command resumes.")] = 1e9,
    timing: Annotated[bool, typer.Option("--timing/--no-timing", help="Time whole images once all are drawn.")] = True,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 30,
    threads: script.Threads = None,
    output: script.JsonFile = Path("reports/mini/peers-steps.json"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """Latency and quality of schedules and of peers across steps, on the mini."""
    io.refuse_overwrite(output, force)
    schedules = {path.stem: Schedule.load(path) for path in schedule or ()}
    family = load_family("mini")
    weights = own_weights(family)
    setup = PictureSetup(weights=weights, threads=threads)
    with machine.quiet_torch(threads) as used, console.progress("Comparing") as tell:
        pipe = pipeline(family, loading.load_unet(family, weights), setup)
        own = [planned(name, one, source.students_of(one, pipe.unet, family, setup)) for name, one in schedules.items()]
        levers = [Levers.model_validate({"runtime": runtime, "precision": one}) for one in precision or ["fp32"]]
        own += _ours(pipe, family, setup, steps, student, fast or (), levers)
        contestants = [one for one in all_of(steps, own) if one.name not in (skip or ())]
        data = registry.load("asdm.data.datasets", "emoji").open_data(SPLIT, family.size)
        picks = np.random.default_rng(0).permutation(len(data))[:pictures]
        real = [data[int(i)] for i in picks]
        captions = [one.caption for one in real]
        options = {"num_inference_steps": steps, "guidance_scale": family.guidance_scale}
        run_file = output.with_name(f"{output.name}.run.pt")
        latents, failed, done = _draw_all(pipe, contestants, captions, options, run_file, seconds, tell)
        if not done:
            console.say(f"What was drawn so far is in {run_file}; repeat the command to resume.")
            raise typer.Exit
        able = [one for one in contestants if one.title in latents and one.title not in failed]
        times = _time_all(pipe, able, captions[0], options, rounds, tell) if timing else {}
        pool = datasets.captions_of(data, len(data))
        judgement = Judgement(networks.Judge.load(), None, real, pool, metrics=tuple(EQUIVALENT))
        drawn = _judged(pipe, able, latents, judgement, times, tell)
    result = PeersSteps(
        **script.run_fields("peers_steps", family.name, used),
        steps=steps, sampler=type(pipe.scheduler).__name__, guidance_scale=family.guidance_scale,
        pictures=pictures, captions=f"emoji, {SPLIT}", contestants=tuple(drawn), duels=tuple(_duels(drawn)),
        failed=failed,
    )  # fmt: skip
    script.finish(result, output, force, _rows(result))


def _ours(
    pipe: Any, family: Family, setup: PictureSetup, steps: int, student: str | None, schedules: Sequence[str],
    levers: Sequence[Levers],
) -> Iterator[Contestant]:  # fmt: skip
    """A student alone, and what the teacher and it draw by schedules in another runtime."""
    unets: dict[str, Any] = {TEACHER: pipe.unet}
    for named, where in by_name([student] if student else []).items():
        unets[named] = source.student_of(where, pipe.unet, family, setup)
        yield student_alone(named, unets[named])
    calls = calls_of(pipe.scheduler, steps)
    for (named, unet), text in itertools.product(unets.items(), schedules):
        schedule = source.read_schedule(text, unet, family.name, calls, pipe.scheduler)
        students = source.students_of(schedule, pipe.unet, family, setup)
        setting = f"{named}, {Path(text).name.removesuffix('.json')}"
        for one in levers:
            yield in_runtime(setting, one, unet, schedule, students, family, setup, family.guidance_scale)


# ---------------------------------------------------------------------------------------------- drawing and timing


def _draw_all(
    pipe: Any, contestants: Sequence[Contestant], captions: Sequence[str], options: dict[str, Any], run_file: Path,
    seconds: float, tell: Tell,
) -> tuple[Latents, dict[str, str], bool]:  # fmt: skip
    """Final latents by contestant, why some failed, and whether all is drawn; each batch is saved.

    What another schedule, student or version drew under the same title is drawn anew.
    """
    teacher = loading.weights_sha256(pipe.unet)
    drawn_by = {one.title: sha256_of([teacher, options, one.of, one.made_of]) for one in contestants}
    saved: dict[str, Any] = torch.load(run_file, weights_only=True) if run_file.exists() else {}
    before = saved.get("drawn_by", {})
    others = {title for title, own in drawn_by.items() if before.get(title) != own}
    latents, failed = (
        {title: one for title, one in saved.get(kind, {}).items() if title not in others}
        for kind in ("latents", "failed")
    )
    began = time.monotonic()
    for n, one in enumerate(contestants):
        while one.title not in failed and len(latents.get(one.title, ())) < len(captions):
            if time.monotonic() - began > seconds:
                return latents, failed, False
            start = len(latents.get(one.title, ()))
            tell(f"{one.title} ({n + 1} of {len(contestants)})", start, None)
            own = captions[start : start + one.batch]
            try:
                drawn = _draw(pipe, one, own, SEED + start, options)
                latents[one.title] = torch.cat([latents[one.title], drawn]) if start else drawn
            except Exception as error:  # a peer's package may fail in any way
                failed[one.title] = f"{type(error).__name__}: {console.first_line(error)}"
            count = len(latents.get(one.title, ()))
            if count % DRAWN_AT_ONCE == 0 or count == len(captions) or one.title in failed:
                with io.whole_file(run_file, force=True) as file:
                    torch.save({"latents": latents, "failed": failed, "drawn_by": before | drawn_by}, file)
    return latents, failed, True


@torch.inference_mode()
def _draw(pipe: Any, one: Contestant, captions: Sequence[str], seed: int, options: dict[str, Any]) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(captions))]
    with installed(one, pipe) as call:
        return call(list(captions), generator=generators, output_type="latent", **options).images.clone()


def _time_all(
    pipe: Any, contestants: Sequence[Contestant], caption: str, options: dict[str, Any], rounds: int, tell: Tell
) -> dict[str, Times]:
    """Seconds of whole images from prompt to pixels, each beside a plain one: a round is plain, it … it, plain."""
    clock = clocks.HostClock()

    def timed(one: Contestant) -> float:
        with installed(one, pipe) as call:
            generator = torch.Generator().manual_seed(SEED)
            return clocks.timed(lambda: call(caption, generator=generator, output_type="np", **options), clock)

    calls = {}
    for one in contestants:
        calls[f"plain beside {one.title}"] = partial(timed, contestants[0])
        calls[one.title] = partial(timed, one)
        timed(one)  # to warm up
    order = list(calls)
    seconds = repeats.interleave(
        calls, (*order, *reversed(order)), clock, min_rounds=rounds, max_rounds=rounds,
        progress=lambda done, left_s: tell("whole images", done, left_s),
    )  # fmt: skip
    return {one.title: (seconds[one.title], seconds[f"plain beside {one.title}"]) for one in contestants}


# ---------------------------------------------------------------------------------------------- judging


@torch.inference_mode()
def _judged(
    pipe: Any, contestants: Sequence[Contestant], latents: Latents, judgement: Judgement,
    times: dict[str, Times], tell: Tell,
) -> list[Drawn]:  # fmt: skip
    """Everyone's losses, each metric beside that of the plain images, which come first."""
    teacher, drawn = latents["plain"].double(), list[Drawn]()
    for n, one in enumerate(contestants):
        tell("judging", n, None)
        own = latents[one.title]
        images = torch.cat([decode_latents(pipe.vae, part) for part in own.split(DRAWN_AT_ONCE)])
        samples = judgement.samples(GeneratedImages(images, own))
        judged = {name: Judged.rounded(each) for name, each in samples.items() if name != "clip_score"}
        seconds, beside = times.get(one.title, ([], []))
        row = Drawn(
            name=one.name, setting=one.setting, of=one.of, steps=one.steps, pairs=len(seconds),
            image_latency_s=estimate(seconds) if seconds else None,
            image_latency_ratio=paired_ratio(seconds, beside) if seconds else None,
            latent_mse=tuple((own.double() - teacher).square().mean((1, 2, 3)).tolist()),
            clip_score=tuple(samples["clip_score"].each.tolist()), judged=judged,
        )  # fmt: skip
        drawn.append(row.model_copy(update={"beside": _beside(row, drawn[0] if drawn else row)}))
    return drawn


def _beside(own: Drawn, plain: Drawn) -> dict[str, Beside]:
    """The difference from the plain images in each metric, and whether it is within what equivalence allows."""
    beside = {}
    for name, (ours, theirs) in {name: (own.metric(name), plain.metric(name)) for name in EQUIVALENT}.items():
        if ours is not None and theirs is not None:
            difference = (spread_of(ours) - spread_of(theirs)).estimate()
            allowed = margin(name, theirs.value)
            beside[name] = Beside(difference=difference, allowed=allowed, equal=within(difference, allowed))
    return beside


def _duels(drawn: Sequence[Drawn]) -> list[Duel]:
    """Every peer faster than plain, which comes first, against our schedule of least loss that is no slower than it.

    No slower than the upper end of the peer's interval, that is.
    """
    plain = drawn[0]
    timed = {one.name + one.setting: one.image_latency_ratio for one in drawn if one.image_latency_ratio}
    ours = [one for one in drawn if one.of == "ours" and one.name + one.setting in timed]
    duels = []
    for peer in drawn:
        ratio = timed.get(peer.name + peer.setting)
        fast = [one for one in ours if ratio is not None and timed[one.name + one.setting].median <= ratio.high]
        if peer.of in NO_PEERS or not fast or ratio is None or ratio.median >= 1:
            continue
        best = min(fast, key=lambda one: _logs(one).mean())
        logs = estimate((_logs(best) - _logs(peer)).tolist(), np.mean)
        bounds = {name: float(np.exp(getattr(logs, name))) for name in ("median", "low", "high")}
        duels.append(
            Duel(
                ours=best.setting, peer=f"{peer.name} {peer.setting}", our_ratio=timed[best.name + best.setting].median,
                peer_ratio=ratio.median,
                latent_mse=estimate(np.subtract(peer.latent_mse, best.latent_mse).tolist(), np.mean),
                latent_mse_ratio=Estimate(**bounds),
                clip_score=estimate(np.subtract(best.clip_score, peer.clip_score).tolist(), np.mean),
                clip_score_change=estimate((_changes(peer, plain) - _changes(best, plain)).tolist(), np.mean),
                clip_score_loss=estimate((_losses(peer, plain) - _losses(best, plain)).tolist(), np.mean),
            )
        )  # fmt: skip
    return duels


def _changes(one: Drawn, plain: Drawn) -> np.ndarray:
    """By how much each picture's CLIP score differs from that of the plain picture."""
    return np.abs(np.subtract(one.clip_score, plain.clip_score))


def _losses(one: Drawn, plain: Drawn) -> np.ndarray:
    """By how much each picture's CLIP score is below that of the plain picture; 0 where it is above."""
    return np.maximum(np.subtract(plain.clip_score, one.clip_score), 0)


def _logs(one: Drawn) -> np.ndarray:
    return np.log(np.maximum(one.latent_mse, 1e-12))


def _rows(result: PeersSteps) -> list[dict[str, Any]]:
    return [
        {
            "contestant": f"{one.name} {one.setting}",
            "image ×": _interval(one.image_latency_ratio),
            "latent MSE": f"{np.mean(one.latent_mse):.4g}",
            **{title: _value(one, name) for name, title in TITLES.items()},
            "equal": ", ".join(
                title for name, title in TITLES.items() if name in one.beside and one.beside[name].equal
            ),
        }
        for one in result.contestants
    ]


def _interval(ratio: Estimate | None) -> str:
    return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]" if ratio else ""


def _value(one: Drawn, metric: str) -> str:
    judged = one.metric(metric)
    return "" if judged is None else f"{judged.value:.4g}"


if __name__ == "__main__":
    script.run(main)
