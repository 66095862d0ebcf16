"""Docstrings as the site's generator reads them: examples as doctest, Sphinx's roles as plain code."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|data|mod|attr):`~?([\w.]+)`")
SHORT = re.compile(r":(?:class|func|meth|data|mod|attr):`~[\w.]*?(\w+)`")


class HouseDocstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
            obj.docstring.value = ROLE.sub(r"`\1`", SHORT.sub(r"`\1`", text))
