"""The stage that runs the tests which need a GPU."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import partial

from benchmarks.gpu.context import Context, Part
from benchmarks.gpu.records import SuiteResult
from benchmarks.script import ROOT

FOLDER = "tests/gpu"
MOST_SHOWN = 300  # characters of what a failed test said


def tests(context: Context) -> list[Part]:
    """`pytest -m gpu`; on a CPU each of them says that it was skipped."""
    return [Part("pytest -m gpu", partial(_run_tests, context))]


def _run_tests(context: Context) -> SuiteResult:
    report = context.work / "tests.xml"
    options = ["-q", "-p", "no:cacheprovider", "-m", "gpu", "--junitxml", str(report)]
    command = [sys.executable, "-m", "pytest", *options, FOLDER]
    code = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode
    if not report.exists():
        raise ValueError(f"pytest wrote no report (exit code {code}).")
    return parsed(report.read_text(encoding="utf-8"))


def parsed(xml: str) -> SuiteResult:
    """The counts and the failures of a JUnit report."""
    cases = list(ElementTree.fromstring(xml).iter("testcase"))
    failures = {
        f"{case.get('classname')}::{case.get('name')}": (problem.get("message") or "")[:MOST_SHOWN]
        for case in cases
        for problem in (*case.findall("failure"), *case.findall("error"))
    }
    skipped = sum(case.find("skipped") is not None for case in cases)
    if not cases:
        raise ValueError(f"no test in {FOLDER} is marked gpu.")
    return SuiteResult(
        passed=len(cases) - len(failures) - skipped,
        failed=len(failures),
        skipped=skipped,
        seconds=sum(float(case.get("time") or 0) for case in cases),
        failures=failures,
    )
