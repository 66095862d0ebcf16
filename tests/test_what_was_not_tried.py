"""What a run leaves out stands in its table: a tool that is missing, tests that were skipped, known faults that nobody could look up."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import dependencies
import pytest
import report
import run


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setenv("TEST_TALLY", str(tmp_path / "audit.tally"))
    monkeypatch.setattr(dependencies, "report", list)
    monkeypatch.setattr(dependencies.sys, "argv", ["dependencies.py"])
    return tmp_path


def row(name: str = "audit", failures: int = 0, **found) -> str:
    cases, failed = run.counted(name)
    result = {"cases": cases, "failures": failed + failures, "minutes": 0.0, "notes": run.notes(name), **found}
    return report.table({name: result}).splitlines()[1]


def test_faults_that_were_not_looked_up(results, monkeypatch):
    monkeypatch.setattr(dependencies.importlib.util, "find_spec", lambda name: None)
    assert not dependencies.main()
    assert row().endswith("known faults of these versions were not looked up: pip-audit is not installed")


@pytest.mark.parametrize(
    "fate, faults, not_asked",
    [
        ({"vulns": []}, [], ""),
        ({"vulns": [{"id": "PYSEC-1"}]}, ["numpy 2.0: PYSEC-1"], ""),
        ({"skip_reason": "not found"}, [], "its service does not know 1 of 2, numpy"),
    ],
)
def test_what_an_audit_finds_and_what_its_service_does_not_know(monkeypatch, fate, faults, not_asked):
    """pip-audit itself ends well where its service had never heard of a package."""
    answer = {"dependencies": [{"name": "torch", "version": "2.13.0", "vulns": []}, {"name": "numpy", "version": "2.0", **fate}]}
    monkeypatch.setattr(dependencies.importlib.util, "find_spec", lambda name: object())
    ended = subprocess.CompletedProcess([], bool(faults), json.dumps(answer), "")
    monkeypatch.setattr(dependencies.subprocess, "run", lambda *a, **k: ended)
    assert dependencies.known_faults({"torch": "2.13.0", "numpy": "2.0"}) == (faults, not_asked)


def test_an_audit_that_cannot_ask_fails(results, monkeypatch):
    monkeypatch.setattr(dependencies.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(dependencies.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1, "", "no network"))
    assert dependencies.main()
    assert dependencies.known_faults({"torch": "2.13.0"}) == (["pip-audit ended with 1: no network"], "")


def test_skipped_tests_and_missing_tools(results):
    (results / "trust-0.xml").write_text('<testsuites><testsuite tests="9" skipped="2" failures="0" errors="0"/></testsuites>')
    (results / "trust.tally").write_text("30 drawn\n0 seven million: too little memory\n")
    assert run.counted("trust") == (37, 0)
    assert row("trust").endswith("seven million: too little memory; 2 skipped")
    assert row("trust", failures=1).endswith("FAILED; seven million: too little memory; 2 skipped")
    assert report.remark({"failures": 0, "skipped": True}) == "skipped: a tool is missing"


def test_pytest_under_a_sanitizer_fails_with_libraries_that_know_none():
    """Those of this tree, which pytest would find first."""
    trust = run.ROOT / "tests" / "trust"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "instrumented", f"{trust}/test_life.py", "-k", "many_threads_run_one_layer"]
    environment = {**os.environ, "PYTHONPATH": str(trust), "SANITIZED_BUILD": "/nowhere"}
    done = subprocess.run(command, cwd=run.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode and "not built with the sanitizer: " in done.stdout, done.stdout


def test_programs_that_cannot_run_here_are_skipped(results):
    """A C++ test of kernels that this processor lacks says so and ends well; ctest takes the words for a test that was skipped."""
    root = run.ROOT
    words = "skip: "
    assert f'"{words}%s is not supported here' in (root / "tests/cpp/check.h").read_text()
    for program in (root / "tests/cpp").glob("test_*.cpp"):
        begins = program.read_text().split("int main(", 1)[1].split("{", 1)[1].lstrip()
        assert begins.startswith("if (!check::wanted_isa()) return 0;"), program
    assert f'ENVIRONMENT SPARSEKERN_ISA=${{isa}} SKIP_REGULAR_EXPRESSION "{words}")' in (root / "CMakeLists.txt").read_text()
    (results / "cpp-2.xml").write_text('<testsuite name="Linux" tests="40" failures="0" disabled="0" skipped="18"/>')  # as ctest writes it
    assert run.counted("cpp") == (22, 0) and run.notes("cpp") == ["18 skipped"]


def test_a_suite_is_run_again_where_a_file_changed_that_it_reads(tmp_path, monkeypatch):
    files = (
        "csrc/core/core.h",
        "sparsekern/nn/a.py",
        "docs/trust.md",
        "tests/cpp/test_a.cpp",
        "tests/cuda/a.py",
        "tests/run.py",
        "setup.py",
    )
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("before")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    assert set(run.READS) | set(run.NO_PROSE) <= {*run.SUITES, *run.FULL}
    suites = ("cpp", "sanitize_cuda", "ops", "docs")
    before = {name: run.source_key(name) for name in suites}
    for file in files:
        (tmp_path / file).write_text("after")
        again = {name for name in suites if run.source_key(name) != before[name]}
        (tmp_path / file).write_text("before")
        expected = {
            "csrc/core/core.h": suites,
            "tests/cpp/test_a.cpp": suites,
            "tests/run.py": suites,
            "setup.py": suites,
            "docs/trust.md": ["docs"],
        }
        assert again == set(expected.get(file, ["ops", "docs", "sanitize_cuda"] if "cuda" in file else ["ops", "docs"])), file
