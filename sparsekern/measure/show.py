"""Rows for people: a table per case, and a plot of the speedup of every case."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sparsekern.measure.protocol import judge
from sparsekern.measure.rows import Row

BUSY = 1.15  # median wall time over CPU time of one thread, from which the core was not quiet

if TYPE_CHECKING:
    from rich.table import Table


def groups(rows: Iterable[Row]) -> dict[tuple[str, str, str, str], list[Row]]:
    """Rows by (case, mode, cache, threads): those that were timed together."""
    found: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault(row.key[:-1], []).append(row)
    return found


def table(rows: list[Row]) -> Table:
    """A rich table of the rows of one case: every rival beside ours, and how many times faster ours is."""
    from rich.table import Table

    first = rows[0]
    title = (
        f"{first.case}   {first.mode}, {first.cache}, {first.threads} thread{'s' * (first.threads > 1)}, "
        f"{first.clock} time, density {first.density:.3g}, {first.flops / 1e6:.3g} MFLOP"
    )
    out = Table(title=_escape(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    out.add_column("provider")
    for head in (
        "p50 µs",
        "p20..p80",
        "cpu µs" if first.clock == "wall" else "wall µs",
        "GF/s",
        "effective",
        "ours",
        "error",
        "memory",
    ):
        out.add_column(head, justify="right", no_wrap=True)
    out.add_column("served by")
    ours = next((row for row in rows if row.provider == "ours" and row.p50_us), None)
    for row in rows:
        name = f"[bold]{_escape(row.provider)}[/]" if row.ours else _escape(row.provider)
        if row.p50_us is None:
            out.add_row(name, "-", "", "", "", "", "", "", "", f"not available: {_escape(row.reason)}", style="dim")
            continue
        out.add_row(
            name,
            f"{row.p50_us:.4g}",
            f"{row.p20_us:.4g}..{row.p80_us:.4g}",
            f"{row.cpu_us if row.clock == 'wall' else row.wall_us:.4g}",
            f"{row.gflops:.3g}",
            f"{row.effective_gflops:.3g}",
            versus(ours, row),
            f"{row.error:.0e}",
            megabytes(row.memory),
            _escape(row.served_by),
        )
    return out


def megabytes(count: int | None) -> str:
    """``1.42 MB`` (a million bytes), or nothing where it is not known."""
    return f"{count / 1e6:.3g} MB" if count else ""


def memory(rows: Iterable[Row]) -> Table | None:
    """What each linear layer holds between forward calls, beside its dense twin and CSR; None if the rows do not say."""
    from rich.table import Table

    out = Table(title="memory per layer, MB (bias left out)", title_justify="left", title_style="bold", box=None, pad_edge=False)
    out.add_column("layer")
    heads = ("dense", "CSR", "CSR 32-bit", "ours", "weight", "index", "plan", "of dense", "packed", "pack", "of dense")
    for head in heads:
        out.add_column(head, justify="right", no_wrap=True)
    layers: dict[str, dict[str, dict[str, int]]] = {}
    for row in rows:
        if row.op == "sparse_linear" and row.mode == "fwd" and row.memory_bytes:
            parts = {name: size for name, size in row.memory_bytes.items() if name != "bias"}
            head = row.case.split("/n")[0].removeprefix(f"{row.op}/")
            layers.setdefault(f"{head} {row.dtype}", {}).setdefault(row.provider, parts)
    for name, held in layers.items():
        if "ours" not in held or "dense" not in held:
            continue

        def cell(provider: str, *parts: str, held: dict[str, dict[str, int]] = held) -> str:
            kept = held.get(provider, {})
            size = sum(kept.get(part, 0) for part in parts or kept)
            return f"{size / 1e6:.3g}" if provider in held else "-"

        def share(provider: str, held: dict[str, dict[str, int]] = held) -> str:
            return f"{sum(held[provider].values()) / sum(held['dense'].values()):.2f}" if provider in held else "-"

        csr = held.get("csr")
        csr_32 = f"{(csr['weight'] + csr['index'] / 2) / 1e6:.3g}" if csr else "-"
        out.add_row(
            *(_escape(name), cell("dense"), cell("csr"), csr_32, cell("ours")),
            *(cell("ours", "weight"), cell("ours", "index"), cell("ours", "plan"), share("ours")),
            *(cell("ours_packed"), cell("ours_packed", "pack"), share("ours_packed")),
        )
    return out if out.row_count else None


def threads(rows: Iterable[Row]) -> Table | None:
    """Our times by number of threads, and how many times faster the most are than one; None if there is one number only."""
    from rich.table import Table

    rows = [row for row in rows if row.ours and row.p50_us]
    counts = sorted({row.threads for row in rows})
    if len(counts) < 2:
        return None
    out = Table(title="ours by number of threads", title_justify="left", title_style="bold", box=None, pad_edge=False)
    out.add_column("case")
    for head in (*(f"{count} thread{'s' * (count > 1)}, µs" for count in counts), "times faster"):
        out.add_column(head, justify="right")
    cases: dict[str, dict[int, float]] = {}
    for row in rows:
        cases.setdefault(f"{row.case} {row.mode} {row.cache} {row.provider}", {})[row.threads] = row.interval_us[1]
    for name, times in cases.items():
        if len(times) == len(counts):
            out.add_row(_escape(name), *(f"{times[count]:.4g}" for count in counts), f"{times[counts[0]] / times[counts[-1]]:.2f}x")
    return out


def versus(ours: Row | None, rival: Row) -> str:
    """How ours did against ``rival``: ``2.3x``, or ``no winner (1.02x)`` where the intervals overlap."""
    if ours is None or rival.provider == ours.provider:
        return ""
    times = rival.interval_us[1] / ours.interval_us[1]
    if rival.provider in ours.ratios:
        times = ours.ratios[rival.provider][1]
    said = judge(ours.interval_us, rival.interval_us)
    return f"{times:.2f}x" if said in ("faster", "slower") else f"no winner ({times:.2f}x)"


def busy(rows: Iterable[Row]) -> str:
    """A notice if threads waited for the processor, so that wall times say more about the neighbours; else empty."""
    waited = [row.wall_us / row.cpu_us for row in rows if row.wall_us and row.cpu_us and row.clock == "wall"]
    share = sorted(waited)[len(waited) // 2] if waited else 1.0
    if share < BUSY:
        return ""
    return f"note: the core was shared (wall time {share:.2f}x CPU time); see --clock cpu, or measure on a quiet machine"


def summary(rows: Iterable[Row]) -> list[str]:
    """One line per row of ours: its ratio to the strongest rival that it must not lose to, by name."""
    lines = []
    for row in rows:
        best = row.best_rival()
        if best:
            name, (low, middle, high) = best
            run = f"{row.mode} {row.cache}" + f" {row.threads}t" * (row.threads > 1)
            lines.append(f"{row.case} {run}: {row.provider} {middle:.2f}x {name} ({low:.2f}..{high:.2f})")
    return lines


def plot(rows: Iterable[Row], path: str | Path, title: str = "") -> Path:
    """Draw our ratio to the strongest gated rival, one bar per case, and return the file; the line at 1 is the rival.

    Raises:
        ValueError: there is no row of ours to draw.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars = [(row, best) for row in rows if row.ours and (best := row.best_rival())]
    if not bars:
        raise ValueError("plot: rows must hold a measurement of ours with a rival; got none")
    labels = [f"{row.case}\n{row.mode}, {row.cache}, {row.provider} vs {best[0]}" for row, best in bars]
    middle = [best[1][1] for _, best in bars]
    spread = [
        [max(0, best[1][1] - best[1][0]) for _, best in bars],
        [max(0, best[1][2] - best[1][1]) for _, best in bars],
    ]
    figure, axes = plt.subplots(figsize=(9, 0.45 * len(bars) + 1.4), layout="constrained")
    axes.barh(
        range(len(bars)),
        middle,
        xerr=spread,
        color=["#2a7f62" if m >= 1 else "#b5523b" for m in middle],
        error_kw={"elinewidth": 0.8},
    )
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(bars)), labels, fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("times faster than the strongest rival (bar: median; whisker: p20 to p80)")
    axes.set_title(title or _caption(bars[0][0]), fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return Path(path)


def _caption(row: Row) -> str:
    card = row.machine
    return f"{card.get('cpu')}, {row.threads} thread(s), torch {card.get('torch')}, sparsekern {card.get('sparsekern')}"


def _escape(text: str) -> str:
    """Words as they are: brackets in them are no markup of rich."""
    from rich.markup import escape

    return escape(text)
