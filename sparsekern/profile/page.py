"""A profile as one HTML page that needs nothing else: tiles, layer bars, a roofline plot, and tables that sort."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsekern.profile.diff import compare
from sparsekern.profile.layers import Profile
from sparsekern.profile.save import numbers
from sparsekern.profile.tree import Node, build_tree

TEMPLATE = Path(__file__).with_name("page.html")

MEANING = (
    ("ms", "median over the rounds, measured inside the running model; the time of the hooks is taken out"),
    ("FLOPs", "of the weights that exist, a multiply and an add counted separately; with the backward pass, where it ran"),
    ("dense FLOPs", "what the dense twins of the sparse layers would need"),
    ("bytes", "inputs, parameters, tables and outputs, each once; three times that with the backward pass"),
    ("FLOP/B", "FLOPs per byte: the arithmetic intensity"),
    ("GF/s, effective", "real: FLOPs over time; effective: dense FLOPs over the same time"),
    ("% roof", "real GF/s over the measured multiply-add peak (float32) of the threads in use"),
    ("% roofline", "real GF/s over what peak and memory bandwidth allow at this intensity; above 100 what is read lies in caches"),
    ("vs dense", "a sparse layer against its dense twin of torch, each alone with hot weights, in interleaved rounds; of a container, "
                 "with the time that its layers take in the model"),
    ("memory peak", "of tensors alive while the layer ran forward, beyond those from before the pass; scratch of kernels is not seen"),
)  # fmt: skip


def write_page(found: Profile, path: str | Path, *, against: Profile | None = None) -> None:
    """Write the page; with ``against`` it also compares the two profiles.

    The page loads nothing, follows the system's light or dark colours, and reads on a telephone as on a desk.
    """
    text = json.dumps(page_data(found, against), separators=(",", ":")).replace("<", "\\u003c")
    Path(path).write_text(TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", text), encoding="utf-8")


def page_data(found: Profile, against: Profile | None = None) -> dict:
    """What the page's script reads."""
    root, machine = build_tree(found), found.machine
    mode = "forward and backward" if found.backward_ms is not None else "forward"
    threads = f"{found.threads} thread{'s' * (found.threads > 1)}"
    about = ["×".join(map(str, found.in_shape)), mode, threads, machine.get("cpu"), machine.get("isa"), f"torch {machine.get('torch')}"]
    return {
        "model": found.model,
        "about": [fact for fact in about if fact],
        "threads": found.threads,
        "roof": vars(found.roof),
        "bare_ms": found.bare_ms,
        "peak_bytes": found.peak_bytes,
        "total": numbers(found, root),
        "rows": _rows(found, root),
        "against": _against(found, against) if against else None,
        "meaning": MEANING,
    }


def _rows(found: Profile, root: Node) -> list[dict]:
    """The tree's nodes in order, each with its parent's id; the model itself is the first."""
    rows: list[dict] = []

    def add(node: Node, parent: int | None, depth: int) -> None:
        own = len(rows)
        row = {"id": own, "parent": parent, "depth": depth, "path": node.path or node.name, "name": node.name}
        row |= {"container": bool(node.children), "all": parent is None and bool(node.children)}
        rows.append(row | {"total_ms": node.total_ms} | numbers(found, node))
        for child in node.children:
            add(child, own, depth + 1)

    add(root, None, 0)
    return rows


def _against(found: Profile, against: Profile) -> dict:
    both, only_first, only_second = compare(found, against)
    rows: list[dict] = []
    above: list[int] = []
    for number, difference in enumerate(both):
        first, second, depth = difference.first, difference.second, difference.depth
        above = [*above[:depth], number]
        parent = above[depth - 1] if depth else None
        row: dict[str, Any] = {"id": number, "parent": parent, "depth": depth, "path": difference.path}
        row |= {"name": first.name, "all": parent is None}
        row |= {"flops": first.flops, "other_flops": second.flops, "total_ms": first.total_ms, "other_ms": second.total_ms}
        row |= {name: getattr(difference, name) for name in ("fewer_flops", "less_time", "realised", "verdict")}
        rows.append(row)
    holders = {row["parent"] for row in rows}
    rows = [row | {"container": row["id"] in holders} for row in rows]
    about = ["Modules of equal path; “realised” is the share of the FLOP reduction that became speed."]
    about += [f"Only in {name}: {', '.join(paths)}." for name, paths in ((found.model, only_first), (against.model, only_second)) if paths]
    return {"model": against.model, "about": about, "rows": rows}
