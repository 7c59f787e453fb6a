"""The levers of an image's speed: measured, chosen from, and run by `asdm generate --fast`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from asdm.measure import machine
from asdm.models.families import load_family
from asdm.models.loading import load_unet
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.records.levers import Lever, Levers, LeversResult
from asdm.records.measurement import Estimate
from asdm.schedule.graphs import fast
from benchmarks.levers import __main__ as command
from benchmarks.levers.measure import Bench

SKIPPED = ["openvino fp32", "openvino bf16", "openvino 8 bits", "onnxruntime 8 bits", "compiled", "decoder"]


@pytest.fixture(scope="module")
def measured(smallest_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("levers") / "levers.json"
    command.main(
        family=str(smallest_pipeline), weights=None, student=None, schedule="every_n:n=2", skip=SKIPPED, steps=4,
        size=None, guidance_scale=None, scheduler="euler", pairs=2, images=1, max_error=0.02, time_budget=600,
        threads=None, output=file, force=False,
    )  # fmt: skip
    return file


def test_a_schedules_file_is_run_on_the_student_it_is_for() -> None:
    """A preset is made for either, and so is told by itself."""
    for schedule, student in (("mine.json", "folder"), ("every_n:n=2", None)):
        assert dict(command.candidates("folder", schedule))["schedule"] == Levers(student=student, schedule=schedule)


def test_each_lever_has_a_factor_and_all_together_one_on_whole_images(measured: Path) -> None:
    result = LeversResult.load(measured)
    levers = {one.name: one for one in result.levers}
    assert [*levers] == ["schedule", "freed memory kept", "onnxruntime"]
    assert set(result.left_out) == {*SKIPPED}
    assert (result.sampler, result.steps) == ("EulerDiscreteScheduler", 4)
    assert levers["schedule"].pass_s.keys() == {"full", "none"}
    assert levers["schedule"].error == 0  # its first step is in full
    assert 0 < (levers["onnxruntime"].error or 0) < 1e-4
    assert result.product is not None
    assert (len(result.plain_image_s), len(result.fast_image_s)) == (1, 2)
    assert result.product.high == pytest.approx(result.plain_image_s[0] / min(result.fast_image_s))


def test_a_decoder_runs_as_a_graph_at_its_own_shape(smallest_pipeline: Path) -> None:
    setup = Setup(weights=str(smallest_pipeline))
    family = load_family(str(smallest_pipeline))
    pipe = pipeline(family, load_unet(family, str(smallest_pipeline)), setup)
    own = pipe.vae.decoder
    with torch.inference_mode():
        bench = Bench(pipe, family, setup, 4, 8.0, 2, 600.0, lambda *_: None)
        moved, graph = bench.decoder(Levers(runtime="onnxruntime"))
        assert 0 < (moved.error or 0.0) < 1e-4
        assert moved.factor.median > 0
        assert pipe.vae.decoder is own
        other = torch.randn(1, 4, 4, 4)
        assert torch.equal(graph(other), own(other))
    with pytest.raises(ValueError, match="the decoder has no graph in eager; choose from onnxruntime, openvino"):
        fast.decoder(Levers(), pipe.vae, family, setup)


def lever(name: str, factor: float, error: float = 0.0, **levers: Any) -> Lever:
    around = Estimate(median=factor, low=factor, high=factor)
    return Lever(name=name, levers=Levers(**levers), factor=around, pass_s={"full": 1.0}, error=error)


def test_the_product_has_what_gains_and_the_fastest_runtime_that_is_exact_enough() -> None:
    levers = [
        lever("student", 0.9, 0.5, student="slow"),
        lever("schedule", 1.5, schedule="every_n"),
        lever("openvino 8 bits", 4.0, 0.1, runtime="openvino", eight_bits=True),
        lever("openvino bf16", 3.0, 0.01, runtime="openvino", precision="bf16"),
        lever("onnxruntime", 1.2, 1e-6, runtime="onnxruntime"),
        lever("kept", 1.1, keep_memory=True),
    ]
    marked, chosen = command.choose(levers, max_error=0.02)
    assert chosen == Levers(schedule="every_n", runtime="openvino", precision="bf16", keep_memory=True)
    assert [one.name for one in marked if one.in_product] == ["schedule", "openvino bf16", "kept"]
    assert command.choose(levers, max_error=0.2)[1].eight_bits


def test_generate_runs_the_levers_that_were_measured(run: Any, measured: Path, smallest_pipeline: Path) -> None:
    """It says what it chose, and draws what eager draws by the same schedule."""
    result = LeversResult.load(measured)
    chosen = Levers(schedule="every_n:n=2", runtime="onnxruntime", decoder=True, keep_memory=True)
    result.model_copy(update={"chosen": chosen}).save(Path("levers.json"))

    def drawn(name: str, *more: Any) -> tuple[np.ndarray, str]:
        done = run("asdm", "generate", "a heart", "--family", smallest_pipeline, "--steps", "4", "-o", name, *more)
        assert done.code == 0, done.err
        return np.asarray(Image.open(name)).astype(int), done.err

    eager, _ = drawn("a.png", "--schedule", "every_n:n=2")
    graphs, said = drawn("b.png", "--fast", "--levers", "levers.json")
    assert (
        "Fast: onnxruntime in fp32, schedule every_n:n=2, no student, decoder there too, freed memory kept (meas"
        in said
    )
    assert np.abs(eager - graphs).max() <= 2
    machine.keep_freed_memory(False)
    for words, message in (
        (("--levers", "levers.json"), "--levers is what --fast chooses from"),
        (("--fast", "--levers", "levers.json", "--dtype", "bf16"), "use --device cpu --dtype fp32"),
    ):
        refused = run("asdm", "generate", "a heart", "--family", smallest_pipeline, "-o", "c.png", *words)
        assert refused.code == 2
        assert message in refused.err


def test_levers_of_another_machine_are_not_taken_unasked(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mini, result = load_family("mini"), LeversResult.load(measured)
    safe, why = fast.choose(None, mini, 4)
    assert (safe.precision, safe.schedule, safe.eight_bits) == ("fp32", None, False)
    assert why == "safe here; no levers were measured"
    chosen = Levers(schedule="planned.json", student="bk_sdm_small", runtime="openvino", precision="bf16")
    here = result.model_copy(update={"family": "mini", "chosen": chosen})
    here.save(Path("reports/a/levers.json"))
    found, why = fast.choose(None, mini, 4)
    assert (found.schedule, found.precision) == (None, "bf16")
    assert "without its student bk_sdm_small, which is not a folder; without its schedule, which is for bk_sdm_" in why
    alone = here.model_copy(update={"chosen": chosen.model_copy(update={"student": None})})
    alone.save(Path("reports/a/levers.json"), force=True)
    assert fast.choose(None, mini, 4)[0].schedule == "planned.json"
    assert fast.choose(None, mini, 5)[0].schedule is None
    named, why = fast.choose(None, mini, 4, "mine")
    assert (named.student, named.schedule) == ("mine", None)
    assert why.endswith("without its schedule, which is for the teacher")
    elsewhere = here.model_copy(update={"environment": here.environment | {"cpu": "another"}})
    elsewhere.save(Path("reports/a/levers.json"), force=True)
    assert fast.choose(None, mini, 4)[0] == safe
    assert "on another cpu" in fast.choose(Path("reports/a/levers.json"), mini, 4)[1]


def test_freed_memory_is_kept_and_given_back() -> None:
    """Page faults of large tensors come back once what is freed goes back to the kernel."""

    def faults() -> int:
        before = machine._page_faults() or 0
        for _ in range(5):
            torch.ones(48 << 20, dtype=torch.uint8)
        return (machine._page_faults() or 0) - before

    if not machine.keep_freed_memory():
        pytest.skip("no glibc")
    faults()
    kept = faults()
    machine.keep_freed_memory(False)
    assert kept < faults() / 4
