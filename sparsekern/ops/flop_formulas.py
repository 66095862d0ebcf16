"""FLOP formulas of our ops for torch's ``FlopCounterMode``, handed over when somebody imports it.

``torch.utils.flop_counter`` imports Triton, where that is installed, and that takes longer than all of this package. So the
formulas wait: a finder in front of Python's own sees the import of that one module and registers them right behind it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

COUNTER = "torch.utils.flop_counter"

_waiting: list[tuple[Any, Callable[..., int], bool]] = []


def register_flops(packet: Any, flops: Callable[..., int], *, raw: bool = False) -> None:
    """Make ``FlopCounterMode`` count calls of ``packet`` by ``flops``, which takes the op's arguments; not ``raw``, shapes for tensors."""
    counter = sys.modules.get(COUNTER)
    if counter is not None:
        counter.register_flop_formula(packet, get_raw=raw)(flops)
        return
    if not _waiting:
        sys.meta_path.insert(0, _Finder())
    _waiting.append((packet, flops, raw))


class _Finder:
    """Finds the counter's module as Python would, and has the formulas registered once it has run."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                while _waiting:
                    packet, flops, raw = _waiting.pop()
                    module.register_flop_formula(packet, get_raw=raw)(flops)

            setattr(spec.loader, "exec_module", run_and_register)  # noqa: B010 (an assignment would not pass as one to a method)
        return spec
