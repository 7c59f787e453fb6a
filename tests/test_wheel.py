"""The wheel holds both packages with their data files, and nothing else; the sdist no test without its fixtures."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("asdm", "asdm_prof")


def files_of(folder: Path) -> set[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder.parent).as_posix() for path in files}


def test_the_wheel_is_the_two_packages_whole(tmp_path: Path):
    source = tmp_path / "source"  # a copy: setuptools writes into the tree that it builds
    for folder in (*PACKAGES, "tests", "benchmarks"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "MANIFEST.in"):
        shutil.copy(ROOT / file, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(source)], check=True)

    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith("asdm_prof-")
    names = set(zipfile.ZipFile(wheel).namelist())
    packaged = {name for name in names if ".dist-info/" not in name}
    assert packaged == set.union(*(files_of(ROOT / package) for package in PACKAGES))
    assert {"asdm/mini/weights/unet/diffusion_pytorch_model.safetensors", "asdm_prof/py.typed"} < packaged
    assert any(name.endswith(".dist-info/licenses/NOTICE") for name in names)

    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        parts = {name.split("/")[1] for name in sdist.getnames() if "/" in name}
    assert {"asdm", "asdm_prof", "pyproject.toml", "NOTICE"} <= parts
    assert "tests" not in parts
