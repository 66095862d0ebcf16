"""A plugin that sanitized.py loads into pytest: the libraries of ours that ran were those of the sanitizer's build, no others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def only_libraries_of_the_build():
    yield
    mapped = {
        line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "sparsekern" in line.rpartition("/")[2]
    }
    core = [path for path in mapped if path.endswith("libsparsekern_core.so")]
    strangers = {path for path in mapped if not path.startswith(os.environ["SANITIZED_BUILD"])}
    assert core and not strangers, f"not built with the sanitizer: {strangers or 'nothing was loaded'}"
