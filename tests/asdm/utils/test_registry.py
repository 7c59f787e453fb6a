"""A seam's file name is what users type; a typo and a missing package are told apart."""

from __future__ import annotations

import sys

import pytest

from asdm.utils import registry


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """A seam with a working file, one that needs a package that nobody has, and two that are no choices."""
    folder = tmp_path / "asdm_test_pets"
    folder.mkdir()
    for name, text in {
        "__init__": "",
        "cat": "SOUND = 'meow'",
        "axolotl": "import a_package_that_nobody_has.inside",
        "_parts": "",
        "broken": "1 / 0",
    }.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "readme.txt").write_text("no module")
    monkeypatch.syspath_prepend(tmp_path)
    yield "asdm_test_pets"
    for name in [name for name in sys.modules if name.startswith("asdm_test_pets")]:
        del sys.modules[name]


def test_the_choices_are_the_files_without_underscore(pets):
    assert registry.names(pets) == ["axolotl", "broken", "cat"]


def test_a_name_loads_its_file(pets):
    assert registry.load(pets, "cat").SOUND == "meow"


@pytest.mark.parametrize("name", ["dog", "Cat", "", "_parts", "__init__", "cat.py", "../cat"])
def test_a_typo_is_told_the_choices(pets, name):
    with pytest.raises(
        ValueError, match=r"^unknown name .* in asdm_test_pets; choose from axolotl, broken, cat\.$"
    ) as caught:
        registry.load(pets, name)
    assert repr(name) in str(caught.value)


def test_a_missing_package_is_named_and_is_no_typo(pets):
    with pytest.raises(
        ValueError, match=r"^'axolotl' .* needs the package 'a_package_that_nobody_has', .*not installed"
    ):
        registry.load(pets, "axolotl")


def test_an_error_in_a_file_is_not_hidden(pets):
    with pytest.raises(ZeroDivisionError):
        registry.load(pets, "broken")


@pytest.mark.parametrize(
    ("package", "some"),
    [
        ("asdm.models.families", {"sd15", "sd21", "sd21_base", "sdxl"}),
        ("asdm.unet.replacements", {"gri_attention", "pass_through"}),
        ("asdm.measure.backends", {"eager", "fake"}),
    ],
)
def test_what_the_seams_of_this_project_offer(package, some):
    assert some <= set(registry.names(package))
