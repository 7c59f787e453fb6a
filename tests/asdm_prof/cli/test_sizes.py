"""`--size WIDTHxHEIGHT` from a command to its file, and from that file on to the next."""

import json

import pytest

from asdm.models import export as exporter
from asdm.models.components import components_of
from asdm.models.families import load_family
from asdm.models.loading import load_unet
from asdm.models.settings import Setup
from asdm_prof.profiler import costs
from asdm_prof.records import Profile
from asdm_prof.sensitivity import calibration
from asdm_prof.sensitivity.settings import SensitivitySettings
from tests.commands import refused
from tests.tiny import TINY_WHOLE


def test_convolutions_grow_with_the_area_and_attention_with_its_square():
    square, wide = costs.flops_of("sd15", 1, 512), costs.flops_of("sd15", 1, (768, 512))
    assert wide["size"] == (768, 512)
    assert costs.flops_of("sd15", 1, (512, 768))["total"] == wide["total"]

    def of(counts, unit, kind):
        return next(row[f"{kind}_macs"] for row in counts["units"] if row["fqn"] == unit)

    unit = "down_blocks.0.attentions.0"
    assert of(wide, unit, "conv") == 1.5 * of(square, unit, "conv")
    cross = 2 * 320 * 77 * 64 * 64  # text stays as long as it is
    assert of(wide, unit, "attention") - 1.5 * cross == 1.5**2 * (of(square, unit, "attention") - cross)
    assert wide["components"][-1]["macs"] > 1.5 * square["components"][-1]["macs"]


def test_the_vae_decodes_what_the_unet_draws():
    decoder = components_of(TINY_WHOLE, (64, 128))[-1]
    (latent,), _ = decoder.inputs("meta", load_unet(TINY_WHOLE).dtype)
    assert latent.shape == (1, 4, 16, 8)


def test_a_size_goes_from_the_profile_into_the_plan_and_the_bench(run, tiny_folder, tmp_path):
    profiled = run("asdm-prof", "profile", tiny_folder, "--backend", "fake", "--size", "128x192", "-o", "p.json")
    assert profiled.code == 0, profiled.err
    profile = Profile.load("p.json")
    assert (profile.size, profile.latent) == ((128, 192), (16, 24))
    assert json.loads((tmp_path / "p.json").read_text())["size"] == [128, 192]
    assert run("asdm-prof", "plan", "--profile", "p.json", "--budget", "0.8", "-o", "plan.json").code == 0
    assert json.loads((tmp_path / "plan.json").read_text())["measured_at"]["size"] == [128, 192]
    bench = ("asdm", "bench", "--teacher", tiny_folder, "--student", "plan.json", "--backend", "fake", "--json")
    measured = run(*bench, "--size", "128x192", "-o", "b.json")
    assert json.loads(measured.out)["size"] == [128, 192]
    assert "was not measured where it is used" not in measured.err
    elsewhere = run(*bench, "--size", "128", "-o", "c.json")
    assert "size 128 (measured at 128x192)" in elsewhere.err
    report = run("asdm-prof", "report", "p.json", "--plan", "plan.json", "--format", "html,csv", "-o", "r")
    assert report.code == 0, report.err
    page = (tmp_path / "r" / "report.html").read_text()
    assert "128x192 px, latent 16 × 24" in page
    again = ("asdm-prof", "validate", tiny_folder, "--profile", "p.json", "--plans", "3", "-o", "v.json")
    refused(run(*again, "--size", "128"), "was measured with size 128x192, not 128")
    assert run(*again, "--size", "128x192").code == 0
    assert json.loads((tmp_path / "v.json").read_text())["size"] == [128, 192]


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("100x128", ("size 100x128 does not fit", "choose multiples of 64 pixels, such as 128x128")),
        ("512x70", ("such as 512x64",)),
        ("100", ("size 100 does not fit", "choose a multiple of 64 pixels, such as 128")),
        ("big", ("size must be pixels per side (512) or WIDTHxHEIGHT (512x768), got 'big'",)),
    ],
)
def test_a_size_that_does_not_fit_says_which_does(run, tiny_folder, size, words):
    refused(run("asdm-prof", "flops", tiny_folder, "--size", size), *words)


def test_damage_is_measured_on_pictures_of_that_shape():
    family = load_family("mini")
    settings = SensitivitySettings(prompts=2, timesteps=1, size=(64, 32), weights=str(family.folder))
    data = calibration.make_calibration(family, load_unet(family, str(family.folder)), settings)
    assert data.noisy.shape[-2:] == (8, 16)


def test_quality_is_of_squares(run, tmp_path):
    refused(
        run("asdm", "bench", "--teacher", "mini", "--student", "a_sdm", "--quality", "--size", "64x96", "-o", "b.json"),
        "asdm bench --quality takes square pictures alone, got 64x96",
    )


def test_a_graph_of_one_shape_is_exported_for_that_shape(tmp_path, tiny_folder):
    with pytest.raises(ValueError, match="size 64x100 does not fit"):
        exporter.export(str(tiny_folder), "onnx", tmp_path / "out", Setup(size=(64, 100)))
