"""A profile for people: rich tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsekern.profile.diff import compare
from sparsekern.profile.layers import Profile
from sparsekern.profile.save import numbers
from sparsekern.profile.tree import Node, build_tree, sort_tree

if TYPE_CHECKING:
    from rich.table import Table

WIDE = 170  # columns of a terminal from which the table shows all it knows


def table(found: Profile, *, top: int | None = None, sort: str = "order", depth: int | None = None, wide: bool = True) -> Table:
    """A rich table: the tree of the modules, containers with the totals of what is below them.

    Args:
        top: only so many layers, without the tree: the slowest, or the first by ``sort``.
        sort: one of :data:`~sparsekern.profile.tree.SORTS`, or "order".
        depth: levels below which modules are folded into one line.
        wide: whether all columns are shown; else the ones that fit 100 characters.

    Raises:
        ValueError: ``profile: top must be None or at least 0; got -1``, and the same of ``depth``
    """
    from rich.markup import escape
    from rich.table import Table

    if top is not None and top < 0:
        raise ValueError(f"profile: top must be None or at least 0; got {top}")
    backward = found.backward_ms is not None
    what = "forward and backward" if backward else "forward"
    out = Table(
        title=escape(f"{found.model} on {_sizes(found.in_shape)}: {what}, {found.threads} thread(s)"),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        show_footer=True,
        caption=escape(_caption(found)),
        caption_justify="left",
    )
    root = build_tree(found, depth)
    columns = _columns(backward, wide)
    out.add_column("layer", footer="all", no_wrap=True)
    out.add_column("kind", no_wrap=True, overflow="ellipsis", max_width=20)
    if wide:
        out.add_column("in → out", no_wrap=True)
    for head, cell in columns:
        out.add_column(head, footer=cell(numbers(found, root)), justify="right", no_wrap=True)
    if top is not None:
        layers = Node("", "", "", children=[Node(n.path, n.path or n.name, n.kind, n.layer) for _, n in root.walk() if n.layer or n.folded])
        rows = [(0, node) for node in sort_tree(layers, "time" if sort == "order" else sort).children[:top]]
    else:
        rows = [(depth - 1, node) for depth, node in sort_tree(root, sort).walk() if depth]
    for indent, node in rows or [(0, root)]:
        values = numbers(found, node)
        shapes = f"{values['in_shape'] or '-'} → {values['out_shape'] or '-'}" if node.layer else ""
        cells = ["  " * indent + escape(node.name), escape(node.kind), *([shapes] if wide else []), *(cell(values) for _, cell in columns)]
        out.add_row(*cells, style="dim" if node.children else None)
    return out


def _columns(backward: bool, wide: bool) -> list[tuple]:
    """(head, what it shows of :func:`~sparsekern.profile.save.numbers`), from left to right."""
    every = [
        ("params", True, lambda v: f"{v['params']:,}" if v["params"] else ""),
        ("MFLOP", True, lambda v: f"{v['flops'] / 1e6:,.2f}" if v["flops"] else ""),
        ("dense", wide, lambda v: f"{v['dense_flops'] / 1e6:,.2f}" if v["flops"] else ""),
        ("MB", wide, lambda v: f"{v['bytes'] / 1e6:.3g}"),
        ("FLOP/B", wide, lambda v: f"{v['intensity']:.3g}" if v["flops"] else ""),
        ("ms", True, lambda v: f"{v['ms']:.3f}"),
        ("backward ms", backward, lambda v: f"{v['backward_ms']:.3f}" if v["backward_ms"] is not None else ""),
        ("% time", True, lambda v: f"{v['share_percent']:.1f}"),
        ("GF/s", True, lambda v: f"{v['gflops']:.1f}" if v["flops"] else ""),
        ("effective", wide, lambda v: f"{v['effective_gflops']:.1f}" if v["flops"] else ""),
        ("% roof", True, lambda v: f"{v['roof_percent']:.0f}" if v["flops"] else ""),
        ("vs dense", True, lambda v: f"{v['speedup']:.2f}x" if v["speedup"] else ""),
        ("peak MB", wide, lambda v: f"{v['peak_bytes'] / 1e6:.3g}" if v["peak_bytes"] is not None else ""),
    ]
    return [(head, cell) for head, shown, cell in every if shown]


def _caption(found: Profile) -> str:
    lines = [
        f"roof: {found.roof.gflops:.0f} GF/s per thread, {found.roof.read_gbytes:.0f} GB/s ({found.roof.source}); "
        "FLOPs count multiply and add separately",
        f"the whole pass takes {found.total_ms:.3f} ms, without hooks {found.bare_ms:.3f} ms; the total above adds up the layers' medians",
    ]
    if any(layer.speedup for layer in found.layers):
        lines.append(
            "vs dense: each sparse layer alone against its dense twin of torch, hot weights; of a container, by the time its layers take"
        )
    return "\n".join(lines)


def realised(found: Profile, against: Profile, *, depth: int | None = None) -> Table:
    """A rich table of the modules of equal path: how many times fewer FLOPs, how many times less time, and what became of the first.

    Two models that were profiled together were timed round by round in turn; two saved runs were not, and the machine may have drifted.
    """
    from rich.markup import escape
    from rich.table import Table

    both, only_first, only_second = compare(found, against, depth)
    names = [(name, paths) for name, paths in ((found.model, only_first), (against.model, only_second)) if paths]
    out = Table(
        title=escape(f"{found.model} against {against.model}, layer by layer"),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        caption=escape("\n".join(f"only in {name}: {', '.join(paths)}" for name, paths in names)) or None,
        caption_justify="left",
    )
    out.add_column("layer", no_wrap=True)
    for head in ("MFLOP", "against", "fewer FLOPs", "ms", "against", "less time", "realised"):
        out.add_column(head, justify="right", no_wrap=True)
    out.add_column("is")
    for difference in both:
        first, second, fewer = difference.first, difference.second, difference.fewer_flops
        flops = (f"{first.flops / 1e6:,.2f}", f"{second.flops / 1e6:,.2f}") if first.flops or second.flops else ("", "")
        out.add_row(
            "  " * difference.depth + escape(first.name),
            *flops,
            f"{fewer:.2f}x" if fewer else "",
            f"{first.total_ms:.3f}",
            f"{second.total_ms:.3f}",
            f"{difference.less_time:.2f}x" if difference.less_time else "",
            f"{difference.realised:.0%}" if difference.realised else "",
            difference.verdict,
        )
    return out


def _sizes(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape)) if shape else "-"
