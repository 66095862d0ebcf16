"""A profile as JSON, which reads back, and as CSV."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsekern.measure.records import record, to_json
from sparsekern.measure.roof import Roof
from sparsekern.profile.layers import LayerProfile, Profile
from sparsekern.profile.tree import Node, build_tree

COLUMNS = (
    "layer", "kind", "in_shape", "out_shape", "calls", "params", "flops", "dense_flops", "bytes", "intensity", "ms", "backward_ms",
    "share_percent", "gflops", "effective_gflops", "roof_percent", "roofline_percent", "speedup", "peak_bytes",
)  # fmt: skip


def numbers(found: Profile, node: Node) -> dict:
    """One row of every report: what is known of a layer or of everything below a container."""
    layer, all_ms = node.layer, sum(layer.total_ms for layer in found.layers)
    peak, gflops = found.roof.gflops * found.threads, node.gflops
    attainable = found.attainable_gflops(node.flops, node.bytes) if node.flops else 0.0
    return {
        "layer": node.path or node.name,
        "kind": node.kind,
        "in_shape": _shape(layer.in_shape if layer else None),
        "out_shape": _shape(layer.out_shape if layer else None),
        "calls": layer.calls if layer else None,
        "params": node.params,
        "flops": node.flops,
        "dense_flops": node.dense_flops,
        "bytes": node.bytes,
        "intensity": node.intensity,
        "ms": node.ms,
        "backward_ms": node.backward_ms,
        "share_percent": 100.0 * node.total_ms / all_ms if all_ms else 0.0,
        "gflops": gflops,
        "effective_gflops": node.effective_gflops,
        "roof_percent": 100.0 * gflops / peak if peak else 0.0,
        "roofline_percent": 100.0 * gflops / attainable if attainable else 0.0,
        "speedup": node.speedup,
        "peak_bytes": node.peak_bytes,
    }


def to_dict(found: Profile) -> dict:
    """Plain values: the profile's fields but its trace, and per layer also what :func:`numbers` derives."""
    values = asdict(found)
    del values["trace"]
    values |= {"flops": found.flops, "dense_flops": found.dense_flops}
    for entry, layer in zip(values["layers"], found.layers, strict=True):
        derived = numbers(found, Node(layer.name, layer.name, layer.kind, layer))
        entry |= {name: derived[name] for name in ("gflops", "effective_gflops", "intensity", "roof_percent", "roofline_percent")}
    return values


def write_json(found: Profile, path: str | Path) -> None:
    """Write :func:`to_dict` as indented JSON.

    Raises:
        ValueError: ``profile: numbers must be finite to be written; got nan``
    """
    Path(path).write_text(to_json("profile", to_dict(found), indent=1) + "\n")


def read_json(path: str | Path) -> Profile:
    """A profile that :func:`write_json` wrote, without its trace.

    Raises:
        ValueError: ``profile: <file> must be a profile written by --json; got <what is wrong>``
    """
    try:
        values: dict[str, Any] = json.loads(Path(path).read_text())
        layers = [record(LayerProfile, {k: _tuples(v) for k, v in layer.items()}) for layer in values["layers"]]
        values = {k: _tuples(v) for k, v in values.items()} | {"layers": layers, "roof": record(Roof, values["roof"])}
        return record(Profile, values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"profile: {Path(path).name} must be a profile written by --json; got {type(error).__name__}: {error}") from error


def write_csv(found: Profile, path: str | Path) -> None:
    """Write one line per layer, and one for all of them, with the columns :data:`COLUMNS`; bytes, FLOPs and ms are not rounded."""
    root = build_tree(found)
    nodes = [node for _, node in root.walk() if node.layer]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(numbers(found, node) for node in nodes)
        writer.writerow(numbers(found, root) | {"layer": "(all)"})


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _shape(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape)) if shape else ""
