"""What fresh memory costs, in two settings of glibc's malloc.

By default large tensors are mapped anew and faulted in page by page, about 0.4 ms per MB of output; a process that keeps what it freed
pays that once. The setting is read when a process starts, so another one is a process of its own.
"""

from __future__ import annotations

import os

TUNABLES = "GLIBC_TUNABLES"
GIB = 1 << 30
SETTINGS = {
    "default": "",
    "kept": f"glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={64 * GIB}:glibc.malloc.top_pad={GIB // 4}",
}


def current() -> str | None:
    """Which setting this process runs with; None for one of its own.

    Example:
        >>> current() in (*SETTINGS, None)
        True
    """
    found = os.environ.get(TUNABLES, "")
    return next((name for name, tunables in SETTINGS.items() if tunables == found), None)


def environment(setting: str) -> dict[str, str]:
    """The environment of a process with ``setting``, else as this one's."""
    rest = {name: value for name, value in os.environ.items() if name != TUNABLES}
    return rest | ({TUNABLES: SETTINGS[setting]} if SETTINGS[setting] else {})
