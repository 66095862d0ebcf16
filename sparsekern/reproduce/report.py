"""The numbers of a Network in Network run as plain data: for the JSON file and for the plot."""

from __future__ import annotations

from sparsekern.reproduce.deep_roots import PARTS, NinResult, NinRow
from sparsekern.reproduce.paper import paper_table
from sparsekern.reproduce.plot import Point
from sparsekern.reproduce.table import caption, paper_cpu_speedup


def nin_json(result: NinResult) -> dict:
    """Everything of a run, ready for ``json.dump``: times in milliseconds per image, speedups as [p20, median, p80]."""
    return {
        "table": "deep-roots/nin",
        "source": paper_table("deep_roots_nin")["source"],
        "rule": paper_table("deep_roots_nin")["rule"],
        "caption": caption(result),
        "images": result.images,
        "batch": result.batch,
        "threads": result.threads,
        "dtype": "float32",
        "clock": result.clock,
        "cpu_over_wall": round(result.share, 3),
        "seconds": round(result.seconds, 1),
        "machine": result.machine,
        "rows": [_row(row, result) for row in result.rows],
    }


def _row(row: NinRow, result: NinResult) -> dict:
    times = {part: {} for part in PARTS}
    for (part, role, competitor), timing in row.timings.items():
        quantiles = (timing.p20_us, timing.median_us, timing.p80_us)
        times[part].setdefault(role, {})[competitor] = [round(us / 1e3 / result.batch, 5) for us in quantiles]
    speedups = {}
    for part in PARTS:
        pairs = (("ours", "dense"), ("grouped", "dense"), ("ours", "grouped"), ("ours", "ours_dense"))
        found = {f"{role} over {rival}": row.speedup(part, role, rival) for role, rival in pairs}
        speedups[part] = {name: [round(v, 4) for v in speedup] for name, speedup in found.items() if speedup}
    return {
        **row.paper,
        "counted": {"flops": row.flops, "params": row.params},
        "flop_reduction": round(row.flop_reduction, 4),
        "rounds": row.rounds,
        "ms_per_image": times,
        "served": row.served,
        "speedup": speedups,
    }


def nin_points(result: NinResult) -> list[Point]:
    """The whole-model speedups of every grouped variant."""
    families = {"root": "root", "tree": "tree", "col": "column"}
    return [
        Point(
            row.paper["row"],
            families[row.paper["row"].partition("-")[0]],
            row.flop_reduction,
            row.speedup("model", "ours"),
            row.speedup("model", "grouped"),
            paper_cpu_speedup(row, result),
        )
        for row in result.rows
        if row.paper["model"] != "nin"
    ]
