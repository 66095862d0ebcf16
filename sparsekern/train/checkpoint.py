"""Checkpoints: tensors and plain facts in one safetensors file, whole or not there at all; nothing is ever unpickled.

A file holds ``model/<entry of the state_dict>`` (index tables among them: the topology comes with the weights),
``optimiser/<parameter>/<entry>``, ``topology/...`` of a changing one, and, as JSON in its header, where training stood and what decides
its result. A digest over all of it tells a damaged file from a good one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = "sparsekern training 1"


def need_safetensors() -> None:
    """Say at once that checkpoints cannot be written, not after an epoch.

    Raises:
        ModuleNotFoundError: ``train: safetensors must be installed, for checkpoints: pip install "sparsekern[train]"``
    """
    try:
        import safetensors.torch  # noqa: F401
    except ModuleNotFoundError as missing:
        sentence = 'train: safetensors must be installed, for checkpoints: pip install "sparsekern[train]"'
        raise ModuleNotFoundError(sentence, name=missing.name) from missing


def save_checkpoint(path: str | Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a file that is the old one or the new one, whenever the machine stops.

    Args:
        path: of the file; its folder must exist.
        tensors: of any device; written as contiguous copies.
        facts: plain data, as JSON takes it.
    """
    from safetensors.torch import save_file

    if not isinstance(path, str | PathLike):
        raise ValueError(f"train: path must be a path; got {type(path).__name__}")
    good = isinstance(tensors, Mapping) and all(isinstance(k, str) and isinstance(t, Tensor) for k, t in tensors.items())
    if not good:
        raise ValueError(f"train: tensors must be a mapping of names to tensors; got {type(tensors).__name__}")
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    try:
        text = json.dumps(facts, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"train: facts must be plain data, as JSON takes it; got {type(facts).__name__}: {error}") from error
    header = {"format": FORMAT, "facts": text, "digest": _digest(whole, text)}
    write_whole(path, lambda file: save_file(whole, file, metadata=header))


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read and verify a file of :func:`save_checkpoint`: ``(tensors, facts)``, on the CPU.

    Raises:
        FileNotFoundError: ``train: checkpoint must be a file; got 'out/last.safetensors', which does not exist``
        ValueError: ``train: checkpoint must be whole; got 'out/last.safetensors', damaged: its contents do not match their digest``;
            ``train: checkpoint must be of 'sparsekern training 1'; got 'out/last.safetensors', of another program``
    """
    from safetensors import SafetensorError, safe_open

    if not isinstance(path, str | PathLike):
        raise ValueError(f"train: checkpoint must be a file; got {type(path).__name__}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"train: checkpoint must be a file; got {str(path)!r}, which does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"train: checkpoint must be whole; got {str(path)!r}, damaged or cut short: {error}") from None
    if header.get("format") != FORMAT:
        raise ValueError(f"train: checkpoint must be of {FORMAT!r}; got {str(path)!r}, of another program or version")
    if header.get("digest") != _digest(tensors, header.get("facts", "")):
        raise ValueError(f"train: checkpoint must be whole; got {str(path)!r}, damaged: its contents do not match their digest")
    try:
        facts = json.loads(header["facts"])
    except (KeyError, ValueError, RecursionError):
        raise ValueError(f"train: checkpoint must be whole; got {str(path)!r}, without the facts of a training") from None
    if not isinstance(facts, dict):
        raise ValueError(f"train: checkpoint must be whole; got {str(path)!r}, without the facts of a training")
    return tensors, facts


def write_whole(path: str | Path, write: Callable[[str], object]) -> None:
    """Call ``write(name)`` on a file beside ``path``, make it durable, and let it take the place of ``path`` in one step."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.part")
    try:
        write(str(beside))
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def under_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}/"): value for name, value in tensors.items() if name.startswith(f"{prefix}/")}


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    found = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return found.hexdigest()
