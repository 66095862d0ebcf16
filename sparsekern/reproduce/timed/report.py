"""The numbers of a timed table as plain data: for the JSON file and for the plot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from typing import Any

from sparsekern.reproduce.paper import paper_table
from sparsekern.reproduce.timed.bench import PARTS, Key
from sparsekern.reproduce.timed.caption import caption
from sparsekern.reproduce.timed.plot import Point
from sparsekern.reproduce.timed.runner import Result, Row
from sparsekern.reproduce.timed.table import paper_cpu_speedup


def result_json(result: Result, cells: Iterable = ()) -> dict:
    """Everything of a run, ready for ``json.dump``: times in milliseconds per image, speedups as [p20, median, p80].

    Args:
        cells: the table's counted cells, kept beside the times.
    """
    paper = paper_table(result.table.paper)
    document = {
        "table": result.table.name,
        "source": paper["source"],
        "rule": paper["rule"],
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
    kept = [_plain(asdict(cell) if is_dataclass(cell) and not isinstance(cell, type) else cell) for cell in cells]
    return document | ({"cells": kept} if kept else {})


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it; fractions become floats."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, str | int | float | bool) else float(value)


def _row(row: Row, result: Result) -> dict:
    role = result.table.sparse_role
    times: dict[str, dict] = {part: {} for part in PARTS}
    for key, timing in row.timings.items():
        quantiles = (timing.p20_us, timing.median_us, timing.p80_us)
        _of_role(times, key)[key[2]] = [_per_image(us / 1e3, result) for us in quantiles]
    speedups = {}
    for part in PARTS:
        pairs = (("ours", "dense"), (role, "dense"), ("ours", role), ("ours", "ours_dense"))
        found = {f"{by} over {rival}": row.speedup(part, by, rival) for by, rival in pairs}
        speedups[part] = {name: [round(v, 4) for v in speedup] for name, speedup in found.items() if speedup}
    return {
        **row.of.paper,
        "dense": row.of.variant.dense.name,
        "counted": {"flops": row.counted.flops, "params": row.counted.params},
        "flop_reduction": round(row.flop_reduction, 4),
        "stack_flop_reduction": round(row.stack_reduction, 4),
        "rounds": row.rounds,
        "ms_per_image": times,
        "left_out_ms_per_image": _left_out(row, result),
        "served": row.served,
        "speedup": speedups,
        "paper_cpu_speedup": paper_cpu_speedup(row, result),
        f"{role}_share": {by: round(share, 4) for by in row.layer_times if (share := row.share(by, result.clock)) is not None},
        "layers": _layers(row, result),
    }


def _of_role(times: dict[str, dict], key: Key) -> dict:
    return times[key[0]].setdefault(key[1], {})


def _left_out(row: Row, result: Result) -> dict[str, dict]:
    """What was called once and not timed in rounds: part -> role -> competitor -> ms."""
    times: dict[str, dict] = {part: {} for part in PARTS if any(key[0] == part for key in row.left_out)}
    for key, ms in row.left_out.items():
        _of_role(times, key)[key[2]] = _per_image(ms, result)
    return times


def _layers(row: Row, result: Result) -> dict:
    """Milliseconds per image of each layer in the running model; the dense twin's layer of the same path beside it."""
    clock = result.clock
    per_layer = [
        {
            "layer": layer.path,
            "weight": layer.weight,
            result.table.sparse_role: layer.sparse,
            "ms_per_image": {
                role: _per_image(times.layers[clock][layer.path], result)
                for role, times in row.layer_times.items()
                if layer.path in times.layers[clock]
            },
        }
        for layer in row.layers
    ]
    return {
        "competitors": row.profiled,
        "model_ms_per_image": {role: _per_image(times.model[clock], result) for role, times in row.layer_times.items()},
        "each": per_layer,
    }


def _per_image(ms: float, result: Result) -> float:
    return round(ms / result.batch, 5)


def points(result: Result, named: bool = False) -> list[Point]:
    """The speedups of every variant that is not its own dense twin, of the part that the table is about; ``named``: by its model's name
    in place of the table's label."""
    part = result.table.plotted
    return [
        Point(
            row.of.variant.model if named else row.of.label,
            row.of.family,
            row.flop_reduction if part == "model" else row.stack_reduction,
            row.speedup(part, "ours"),
            row.speedup(part, result.table.sparse_role),
            paper_cpu_speedup(row, result),
        )
        for row in result.rows
        if not row.of.is_dense
    ]
