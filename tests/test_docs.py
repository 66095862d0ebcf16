"""The words we give people: every code block runs, every command is one, links point somewhere, the site builds, lists are complete."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from sparsekern.cli.program import COMMANDS, _parser, main

ROOT = Path(__file__).resolve().parent.parent
SITE = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "bench" / "README.md", *SITE]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
CODE = {"CMakeLists.txt": [ROOT], "*.py": [ROOT], "**/*.py": [ROOT / room for room in ("sparsekern", "bench", "tests")]}
CODE |= {"**/*.[ch]*": [ROOT / "csrc"], "Makefile": [ROOT]}


def blocks(page: Path, *languages: str) -> list[str]:
    return [body for language, body in BLOCK.findall(page.read_text()) if language in languages]


@pytest.mark.parametrize("name", NAMES)
def test_python_blocks_run(name):
    page = ROOT / name
    python = blocks(page, "python", "py", "pycon")
    assert all(">>>" in body for body in python), f"{name}: a python block without an example cannot be tested"
    if python:
        result = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS)
        assert result.failed == 0 and result.attempted >= len(python)


# ---- commands: in blocks, and those of one line in the text


def commands(page: Path) -> list[str]:
    """Lines of shell blocks, and `sparsekern ...` in the text, without comments; `A | B` in the text names two commands at once."""
    lines = [line for body in blocks(page, "sh", "") for line in body.splitlines()]
    lines = [line.split("  #")[0].strip() for line in lines]
    plain = BLOCK.sub("", page.read_text())
    lines += [line for line in re.findall(r"(?<!`)`(sparsekern [^`]+)`(?!`)", plain) if "|" not in line and "\n" not in line]
    return [line for line in lines if re.match(r"(\.venv/bin/)?(sparsekern|make|pip|python|pytest|torchrun)(\s|$)", line)]


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_commands(name):
    known = {
        "make": set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)),
        "pip": set(re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(), re.M)),
    }
    for line in commands(ROOT / name):
        words = shlex.split(line, comments=True)
        tool, rest = words[0].removeprefix(".venv/bin/"), words[1:]
        if tool == "sparsekern":
            if len(rest) == 1:  # the name of a command, or one without arguments
                assert rest[0] in {command.__name__.rpartition(".")[2] for command in COMMANDS}, line
            elif rest:
                _parser().parse_args(rest)  # argparse ends the test where it is not one
        elif tool == "make":
            assert next(word for word in rest if "=" not in word) in known["make"], line
        elif tool == "pip":
            for extra in re.findall(r"\[([\w,]+)\]", line):
                assert set(extra.split(",")) <= known["pip"], line
        elif tool == "python" and rest[0] != "-m":
            assert (ROOT / rest[0]).exists(), line


@pytest.mark.slow
@pytest.mark.parametrize("name", [page.relative_to(ROOT).as_posix() for page in SITE])
def test_commands_run(name, tmp_path, monkeypatch, capsys):
    """The shell blocks of the site, one after the other, in a folder of their own; what `make` and `pip` do is tested elsewhere."""
    pytest.importorskip("rich")
    monkeypatch.chdir(tmp_path)
    for body in blocks(ROOT / name, "sh"):
        for line in body.splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "sparsekern":
                assert main(words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"


# ---- links


def anchors(page: Path) -> set[str]:
    """As mkdocs makes them of headings."""
    heads = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.M)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads}


@pytest.mark.parametrize("name", NAMES)
def test_links_point_somewhere(name):
    page = ROOT / name
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", BLOCK.sub("", page.read_text())):
        if target.startswith("http"):
            continue
        file = page.parent / target if target else page
        assert file.exists(), f"{name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{name} links to {target}#{anchor}"


# ---- lists that must be complete


def test_every_test_that_a_defect_is_held_by_exists():
    files = [file for suffix in ("py", "cpp") for file in (ROOT / "tests").rglob(f"test_*.{suffix}")]
    written = {file.relative_to(ROOT / "tests").as_posix(): file.read_text() for file in files}
    page = (ROOT / "docs" / "trust.md").read_text().partition("## What was found")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| .* \| (.*?) \|$", page, re.M)[1:]
    assert len(rows) > 20
    for row in rows:
        names = re.findall(r"`([^`]*test_[^`]*)`", row)
        assert names, f"{row} names no test"
        for name in names:
            file, _, test = name.rpartition("::")
            there = {path: text for path, text in written.items() if path.endswith(file)}
            assert name in written if "." in test else any(f"def {test}(" in text for text in there.values()), f"there is no {name}"


def test_every_environment_variable_is_listed():
    """What the code reads from the environment, and every option of the build, stands in one place; and nothing else does."""
    files = [file for pattern, folders in CODE.items() for folder in folders for file in folder.glob(pattern)]
    text = {file: file.read_text() for file in files if file.is_file() and file.name != "test_docs.py"}
    ours = {name for body in text.values() for name in re.findall(r"\bSPARSEKERN_[A-Z]+(?:_[A-Z]+)*\b", body)}
    read = set()
    for file, body in text.items():
        if file.suffix == ".py" and "tests" not in file.relative_to(ROOT).parts[:-1]:
            read |= {name for node in ast.walk(ast.parse(body)) if (name := _variable(node))}
    page = (ROOT / "docs" / "environment.md").read_text()
    listed = set(re.findall(r"`([A-Z][A-Z_]+)`", "\n".join(re.findall(r"^\| (`[A-Z].*?) \|", page, re.M))))
    read.discard("PATH")
    assert ours | read <= listed, f"not listed: {sorted((ours | read) - listed)}"
    gone = {name for name in listed if name.startswith("SPARSEKERN_")} - ours
    assert not gone, f"listed, but no more: {sorted(gone)}"


def _variable(node: ast.AST) -> str | None:
    """X of ``os.environ["X"]``, ``os.environ.get("X")``, ``.setdefault`` and ``"X" in os.environ``."""
    of_environ = lambda value: isinstance(value, ast.Attribute) and value.attr == "environ"  # noqa: E731
    found = None
    if isinstance(node, ast.Subscript) and of_environ(node.value):
        found = node.slice
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and of_environ(node.func.value) and node.args:
        found = node.args[0]
    elif isinstance(node, ast.Compare) and of_environ(node.comparators[0]):
        found = node.left
    return found.value if isinstance(found, ast.Constant) else None


def test_the_reference_names_what_is_there():
    """Every `::: name` of the site can be imported, and what the package offers by name is documented somewhere."""
    named = [name for page in SITE for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.M)]
    assert len(named) > 50 and len(set(named)) == len(named)
    documented = {id(resolved(name)) for name in named}
    rooms = ("", ".analysis", ".data", ".measure", ".models", ".nn", ".ops", ".profile", ".reproduce", ".topology", ".train", ".transform")
    for room in (importlib.import_module(f"sparsekern{name}") for name in rooms):
        offered = {name: getattr(room, name) for name in room.__all__}
        kinds = (type, types.FunctionType)  # what is called; the rest are rooms and lists
        missing = [name for name, value in offered.items() if isinstance(value, kinds) and id(value) not in documented]
        assert not missing or id(room) in documented, f"{room.__name__}: {missing} not in the reference"


def resolved(name: str) -> object:
    """What a page means by ``::: name``."""
    module, _, attribute = name.rpartition(".")
    if importlib.util.find_spec(module) is not None and hasattr(found := importlib.import_module(module), attribute):
        return getattr(found, attribute)
    return importlib.import_module(name)


def test_every_page_is_in_the_menu():
    menu = set(re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert menu == {page.relative_to(ROOT / "docs").as_posix() for page in SITE} - {"status.md"}


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs is not installed: pip install sparsekern[docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {page.relative_to(tmp_path / "site").with_suffix(".md").as_posix() for page in (tmp_path / "site").rglob("*.html")}
    assert {page.relative_to(ROOT / "docs").as_posix() for page in SITE} - {"status.md"} <= pages
    loaded = re.compile(r"<(?:script|img|link)[^>]*(?:src|href)=\"https?://")
    assert not [page for page in (tmp_path / "site").rglob("*.html") if loaded.search(page.read_text())]
    shutil.rmtree(tmp_path / "site")
