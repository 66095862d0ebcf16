"""Deep Roots (arXiv 1605.06489): Tables 1 to 8, the AlexNets of Figure 2, and the percentages of the text."""

from __future__ import annotations

from fnmatch import fnmatch
from fractions import Fraction

from sparsekern.reproduce.counted.cells import Cell, judge
from sparsekern.reproduce.counted.recount import Counts, claim_cell, counted, percent, row_cells, table_data

TABLES = ("deep-roots/nin", "deep-roots/resnet50", "deep-roots/resnet200", "deep-roots/googlenet", "deep-roots/alexnet")


def cells(table: str) -> list[Cell]:
    """Every cell of ``table``, and every claim of the text about its networks.

    Cost:
        About a second per network: each runs once without data.
    """
    data = table_data(table)
    options = data.get("count_options", {})

    def recount(row: dict) -> Counts:
        as_printed, true = (counted(row["model"], convention, **options) for convention in (data["convention"], "deep_roots"))
        conv_weights = sum(layer.weights for layer in true.layers if layer.is_conv)
        return {
            "flops": as_printed.flops,
            "params": as_printed.params,
            "true_flops": true.flops,
            "true_params": true.params,
            "conv_weights": conv_weights,
        }

    found = row_cells(data["rows"], data["columns"], recount)
    rows = {row["model"]: row for row in data["rows"]}
    for claim in data["claims"]:
        row, dense = rows[claim["model"]], rows[data["dense"]]
        if claim["of"] == "groups":
            found.append(claim_cell(claim, _groups(claim, options)))
            continue
        if claim["of"] in ("cpu_ms", "gpu_ms"):  # a claim about times can be held against the printed times only
            part, whole = (Fraction(r["printed"][claim["of"]]) for r in (row, dense))
            quantities: dict[str, tuple] = {claim["of"]: (part, whole)}
        else:
            counts, twin = recount(row), recount(dense)
            quantities = {key: (counts[key], twin[key]) for key in counts}
        found.append(_claim(claim, quantities))
    return found


def _groups(claim: dict, options: dict) -> tuple[int, ...]:
    """The filter groups of the convolutions that each column of a group table speaks of; 0 where they are not all alike."""
    convs = [layer for layer in counted(claim["model"], "deep_roots", **options).layers if layer.is_conv]
    found = ({c.groups for c in convs if fnmatch(c.name, name) and c.weight_shape[-1] == kernel} for name, kernel in claim["layers"])
    return tuple(groups.pop() if len(groups) == 1 else 0 for groups in found)


def _claim(claim: dict, quantities: dict[str, tuple]) -> Cell:
    """A percentage of the text: what is left, or saved, of a count or of a printed time."""
    if "meant" in claim:
        return _misworded(claim, quantities)
    left = percent(*quantities[claim["of"]])
    return claim_cell(claim, left if claim["as"] == "left" else 100 - left)


def _misworded(claim: dict, quantities: dict[str, tuple]) -> Cell:
    """A saving that no quantity has, while one of them *grows* by that much the other way round."""
    for key in claim["of"]:
        saved = 100 - percent(*quantities[key])
        if judge(claim["printed"], saved)[0] == "exact":
            return claim_cell(claim, saved)
    part, whole = quantities[claim["meant"]]
    grown = percent(whole, part) - 100
    verdict = judge(claim["printed"], grown)
    return claim_cell(claim, grown, ("misworded", "") if verdict[0] == "exact" else ("not reproduced", ""))
