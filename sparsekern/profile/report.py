"""A profile for people (a rich table) and for programs (JSON)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sparsekern.profile.layers import LayerProfile, Profile

if TYPE_CHECKING:
    from rich.table import Table


def table(found: Profile, *, top: int | None = None) -> Table:
    """A rich table, one row per layer in the order of the first call; ``top`` keeps the slowest ones only."""
    from rich.table import Table

    shown = found.layers
    if top is not None:
        slowest = sorted(found.layers, key=lambda layer: -layer.total_ms)[:top]
        shown = [layer for layer in found.layers if layer in slowest]
    what = "forward and backward" if found.backward_ms is not None else "forward"
    out = Table(
        title=f"{found.model} on {_shape(found.in_shape)}: {what}, {found.threads} thread(s)",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        show_footer=True,
        caption=f"roof: {found.roof.gflops:.0f} GF/s per thread, {found.roof.read_gbytes:.0f} GB/s "
        f"({found.roof.source}); FLOPs count multiply and add separately",
        caption_justify="left",
    )
    out.add_column("layer", footer="all", no_wrap=True)
    out.add_column("kind")
    out.add_column("in → out")
    footers = [f"{found.params:,}", f"{found.flops / 1e6:,.1f}", f"{found.ms:.3f}"]
    heads = ["params", "MFLOP", "ms"]
    if found.backward_ms is not None:
        heads.append("backward ms")
        footers.append(f"{found.backward_ms:.3f}")
    total_gflops = found.flops / found.total_ms / 1e6 if found.total_ms else 0.0
    heads += ["% time", "GF/s", "% roof"]
    footers += ["100", f"{total_gflops:.1f}", f"{found.roof_percent(found):.0f}"]
    for head, footer in zip(heads, footers, strict=True):
        out.add_column(head, footer=footer, justify="right", no_wrap=True)
    for layer in shown:
        out.add_row(*_cells(found, layer))
    return out


def _cells(found: Profile, layer: LayerProfile) -> list[str]:
    cells = [
        layer.name,
        layer.kind,
        f"{_shape(layer.in_shape)} → {_shape(layer.out_shape)}",
        f"{layer.params:,}" if layer.params else "",
        f"{layer.flops / 1e6:,.2f}" if layer.flops else "",
        f"{layer.ms:.3f}",
    ]
    if layer.backward_ms is not None:
        cells.append(f"{layer.backward_ms:.3f}")
    share = 100.0 * layer.total_ms / found.total_ms if found.total_ms else 0.0
    return cells + [
        f"{share:.1f}",
        f"{layer.gflops:.1f}" if layer.flops else "",
        f"{found.roof_percent(layer):.0f}" if layer.flops else "",
    ]


def realised(found: Profile, against: Profile) -> Table:
    """A rich table of the layers of equal name: how many times fewer FLOPs, and how many times less time.

    The last column is the share of the FLOP reduction that became speed. The two profiles were taken one after the other, so
    trust the total of an interleaved measurement more than any single line.
    """
    from rich.table import Table

    out = Table(
        title=f"{found.model} against {against.model}, layer by layer", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    out.add_column("layer", no_wrap=True)
    for head in ("MFLOP", "against", "fewer FLOPs", "ms", "against", "less time", "realised"):
        out.add_column(head, justify="right", no_wrap=True)
    others = {layer.name: layer for layer in against.layers}
    for layer in found.layers:
        other = others.get(layer.name)
        if other is None or not layer.flops or not other.flops:
            continue
        fewer, less = other.flops / layer.flops, other.total_ms / layer.total_ms
        out.add_row(
            layer.name, f"{layer.flops / 1e6:,.2f}", f"{other.flops / 1e6:,.2f}", f"{fewer:.2f}x",
            f"{layer.total_ms:.3f}", f"{other.total_ms:.3f}", f"{less:.2f}x", f"{less / fewer:.0%}",
        )  # fmt: skip
    return out


def to_dict(found: Profile) -> dict:
    """Plain values: the profile's fields, and per layer also ``gflops`` and ``roof_percent``."""
    values = asdict(found)
    values["flops"] = found.flops
    for entry, layer in zip(values["layers"], found.layers, strict=True):
        entry |= {"gflops": layer.gflops, "roof_percent": found.roof_percent(layer)}
    return values


def write_json(found: Profile, path: str | Path) -> None:
    """Write :func:`to_dict` as indented JSON."""
    Path(path).write_text(json.dumps(to_dict(found), indent=1) + "\n")


def _shape(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape)) if shape else "-"
