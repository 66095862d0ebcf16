"""Parameters and FLOPs of every registered model, known without building it: what ``sparsekern models`` lists.

``counts.json`` beside this file holds, per name, ``params`` (all parameters, batch-norm included) and ``flops`` of one image of the
card's input (multiply and add count 2), as counted by :func:`sparsekern.profile.count`. A test holds it against the models and
says what to write when one is new or changed.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources


@cache
def known_counts() -> dict[str, dict[str, int]]:
    """Name to ``{"params": ..., "flops": ...}``. Do not write to what is returned.

    Example:
        >>> known_counts()["nin"]["params"]
        966986
    """
    return json.loads(resources.files(__package__).joinpath("counts.json").read_text(encoding="utf-8"))
