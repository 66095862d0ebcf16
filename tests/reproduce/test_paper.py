"""The Network in Network cells as data: what rounds to what, and nothing lost on the way."""

import pytest

from sparsekern.models import list_models
from sparsekern.reproduce import paper_rows, paper_table
from sparsekern.reproduce.tables import PAPER_TABLES

ROWS = paper_rows("deep_roots_nin")


def test_every_model_has_its_row_and_the_source_is_named():
    assert set(list_models("nin*")) - {row["model"] for row in ROWS} == {"nin_root_32"}  # of figure 10, which prints no number
    assert len(ROWS) == 13
    assert "1605.06489, tables 2 and 8" in paper_table("deep_roots_nin")["source"]
    assert [row["row"] for row in ROWS if 2 in row["tables"]] == ["Orig.", "root-2", "root-4", "root-8", "root-16"]


@pytest.mark.parametrize("table", PAPER_TABLES)
def test_models_named_in_the_data_exist(table):
    data = paper_table(table.replace("-", "_").replace("/", "_"))
    models = {row["model"] for row in data["rows"] if "model" in row} | {data.get("dense", "nin")}
    assert models <= set(list_models())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["row"])
def test_exact_integers_round_to_the_printed_cells(row):
    assert f"{row['flops'] / 1e8:.2f}" == row["printed"]["flops_1e8"]
    assert f"{row['params'] / 1e5:.2f}" == row["printed"]["params_1e5"]
    assert set(row["status"]) == {"flops", "params", "accuracy", "cpu_ms", "gpu_ms"}
    assert row["integers"] in paper_table("deep_roots_nin")["integers"]


def test_the_papers_claims_about_root_8():
    orig, root_8 = (next(row for row in ROWS if row["row"] == name) for name in ("Orig.", "root-8"))
    assert round(100 * root_8["flops"] / orig["flops"]) == 46  # section 4.1
    assert round(100 * root_8["params"] / orig["params"]) == 33
    assert round(100 * (1 - float(root_8["printed"]["cpu_ms"]) / float(orig["printed"]["cpu_ms"]))) == 37
    assert round(100 * (1 - float(root_8["printed"]["gpu_ms"]) / float(orig["printed"]["gpu_ms"]))) == 23
