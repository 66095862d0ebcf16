"""Imports point one way: a package may only look at the ones below it."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "sparsekern"

MAY_IMPORT = {
    "version": set(),
    "arguments": set(),
    "console": set(),
    "drawing": set(),
    "topology": {"arguments", "drawing"},
    "analysis": {"drawing"},
    "ops": {"arguments"},
    "nn": {"arguments", "ops", "topology"},
    "data": {"arguments"},
    "models": {"arguments", "nn", "ops", "topology"},
    "measure": {"ops", "nn", "topology", "version"},
    "profile": {"drawing", "measure", "ops"},
    "transform": {"arguments", "nn", "ops", "topology", "measure"},
    "train": {"arguments", "console", "models", "nn", "ops", "topology", "data", "drawing"},
    "reproduce": {"console", "models", "nn", "ops", "topology", "data", "measure", "profile", "train", "transform", "drawing"},
    "cli": {"console", "models", "nn", "ops", "topology", "data", "measure", "profile", "reproduce", "train", "transform", "version"},
    "__main__": {"cli"},
    "lazy": {"transform"},
    "__init__": {"lazy", "nn", "ops", "topology", "version"},
}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sparsekern":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("sparsekern.")}
    return found


def test_imports_point_one_way():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        wrong += [f"{path.relative_to(PACKAGE)} imports {other}" for other in imports_of(path) - MAY_IMPORT[room] - {room, "_native"}]
    assert not wrong, wrong


def test_core_and_cuda_know_no_torch():
    for room in ("core", "cuda"):
        for path in (PACKAGE.parent / "csrc" / room).rglob("*.*"):
            assert "torch/" not in path.read_text(), f"{path.name} includes torch"


def test_kernels_know_no_emulator():
    """Kernel sources include `cuda/device.h` and nothing of the emulator: it is the same source on both sides."""
    for path in (PACKAGE.parent / "csrc" / "cuda").glob("*"):
        if path.is_file() and path.name != "device.h":
            assert '#include "cuda/emu' not in path.read_text() and "SK_EMU" not in path.read_text(), path.name


def test_init_files_define_nothing():
    for path in PACKAGE.rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert not any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in body), path
        assert len(path.read_text().splitlines()) < 60, path
