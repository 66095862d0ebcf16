"""The machine card: everything about this machine that a number depends on, and nothing that names its owner.

A card holds no host name, user or path, so rows that carry it can be published.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from functools import cache
from pathlib import Path

import numpy

import sparsekern

FEATURES = ("fma", "avx2", "avx512f", "avx512bw", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve")


def machine_card() -> dict:
    """Facts about the processor, the threads, the memory, the versions and the state of the source tree.

    Returns:
        a flat dict of str, int, list and None; safe to write to JSON. Threads and affinity are read at every call.

    Example:
        >>> card = machine_card()
        >>> card["cores"] >= 1 and card["torch"] is not None
        True
    """
    import torch

    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return _fixed_facts() | {
        "isa": instruction_set(),
        "threads": torch.get_num_threads(),
        "affinity": affinity,
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "allocator": allocator(),
    }


def machine_kind(card: dict | None = None) -> str:
    """A short slug of the kind of machine: the file name, less its ending, of committed rows.

    Example:
        >>> machine_kind({"cpu": "Intel(R) Xeon(R) Processor @ 2.60GHz", "features": ["avx512f", "amx_bf16"],
        ...               "cores": 2, "gpu": None})
        'intel-xeon-avx512-amx-2c'
    """
    card = card or machine_card()
    name = re.sub(r"\((r|tm|c)\)|@.*|\b(cpu|processor|\d+-core|with .*)\b", " ", card["cpu"].lower())
    sets = [short for short, feature in (("avx512", "avx512f"), ("amx", "amx_bf16")) if feature in card["features"]]
    if not sets and "avx2" in card["features"]:
        sets = ["avx2"]
    words = name.split() + sets + [f"{card['cores']}c"] + ([card["gpu"].lower()] if card.get("gpu") else [])
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words)).strip("-")


def instruction_set() -> str | None:
    """The instruction set that sparsekern's own kernels use now, or None without the native module."""
    try:
        from sparsekern import _native
    except ImportError:
        return None
    return str(_native.isa())


def allocator() -> str:
    """Settings that change what fresh memory costs: malloc tunables, and the *names* of preloaded libraries."""
    preloaded = [Path(p).name for p in re.split(r"[:\s]+", os.environ.get("LD_PRELOAD", "")) if p]
    settings = [f"GLIBC_TUNABLES={os.environ['GLIBC_TUNABLES']}"] if os.environ.get("GLIBC_TUNABLES") else []
    return " ".join(settings + [f"preload:{name}" for name in preloaded]) or "default"


@cache
def _fixed_facts() -> dict:
    cpu = _cpu_info()
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "features": [f for f in FEATURES if f in cpu.get("flags", cpu.get("Features", "")).split()],
        "cores": os.cpu_count() or 1,
        "caches": _caches(),
        "memory_gib": _memory_gib(),
        "os": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "sparsekern": sparsekern.__version__,
        "git": git_revision(),
    }


def _cpu_info() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty on other systems."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _caches() -> dict[str, str]:
    """Size per cache as one core sees it, for example {"L1d": "48K", "L2": "2048K"}."""
    sizes = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((folder / f).read_text().strip() for f in ("level", "type", "size"))
        except OSError:
            continue
        sizes[f"L{level}" + {"Data": "d", "Instruction": "i"}.get(kind, "")] = size
    return sizes


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


@cache
def git_revision() -> str | None:
    """Short revision of the source tree, with ``+`` when it has uncommitted changes; None in an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
