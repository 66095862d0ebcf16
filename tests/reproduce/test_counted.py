"""``--counts-only`` end to end, and that a wrong count does not pass."""

import io
import json
from dataclasses import replace

import pytest

pytest.importorskip("rich")

from sparsekern.reproduce import TABLES, Arguments, paper
from sparsekern.reproduce.counted import deep_roots, patterns, simplenet, sis
from sparsekern.reproduce.counted.recount import table_data
from sparsekern.reproduce.counted.run import run_counted, table_cells
from sparsekern.reproduce.counted.table import cells_table, show_value
from sparsekern.reproduce.tables import EXPERIMENTS, PAPER_TABLES


def test_all_tables_are_as_expected(tmp_path, capsys):
    assert TABLES["all"](Arguments(counts_only=True, out=tmp_path)) == 0
    text = capsys.readouterr().out
    assert "All tables: cells by status" in text and "UNEXPECTED" not in text
    document = json.loads((tmp_path / "all_counts.json").read_text(encoding="utf-8"))
    assert [table["table"] for table in document["tables"]] == list(PAPER_TABLES)
    assert all(cell["ok"] for table in document["tables"] for cell in table["cells"])
    assert sum(len(table["cells"]) for table in document["tables"]) > 450


def test_one_table_and_its_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")  # narrower, the columns that are only printed are left out
    file = tmp_path / "somewhere" / "cells.json"
    assert TABLES["sis/svhn"](Arguments(counts_only=True, json=file)) == 0
    text = capsys.readouterr().out
    for expected in ("53,136", "11.65", "cut, not rounded", "z = +0.81; divisible by 3", "0.9342"):
        assert expected in text
    (table,) = json.loads(file.read_text(encoding="utf-8"))["tables"]
    cell = next(cell for cell in table["cells"] if cell["id"] == "sis/SVHN SiS#3/eff")
    assert cell["status"] == cell["expected"] == "off by 0.01" and cell["recomputed"] == pytest.approx(11.6555, abs=1e-4)


def _one_more(field: str):
    """A counter that finds one ``field`` too many."""

    def plant(counted):
        def wrong(model, convention, **options):
            found = counted(model, convention, **options)
            return replace(found, **{field: getattr(found, field) + 1})

        return wrong

    return plant


def _one_weight_more(counted):
    def wrong(model, convention, **options):
        found = counted(model, convention, **options)
        layers = [replace(layer, weights=layer.weights + 1) for layer in found.layers]
        return replace(found, layers=layers)

    return wrong


@pytest.mark.parametrize(
    ("module", "table", "plant"),
    [
        (deep_roots, "deep-roots/nin", _one_more("flops")),
        (deep_roots, "deep-roots/resnet200", _one_more("params")),
        (deep_roots, "deep-roots/alexnet", _one_more("flops")),
        (sis, "sis/cifar10", _one_weight_more),
        (simplenet, "simplenet/archs", _one_more("synapses")),
        (simplenet, "simplenet/flops", _one_more("macs")),
        (patterns, "patterns/densities", _one_weight_more),
        (patterns, "patterns/savings", _one_more("flops")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_count_that_is_wrong_by_one_is_an_error(module, table, plant, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(module, "counted", plant(module.counted))
    assert run_counted(table, [table], tmp_path) == 1
    assert "UNEXPECTED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "row", "column", "planted"),
    [
        ("deep-roots/googlenet", "Orig.", "flops_1e9", "1.73"),
        ("sis/svhn", "SiS#1", "cl", "203698"),
        ("simplenet/flops", "VGG16", "MACC", "15470 M"),  # put right: no longer the misprint that is expected
        ("patterns/savings", "MNIST conv+2CLs (16,10)", "conv_ops_1e9", "0.01"),
    ],
)
def test_a_text_that_the_paper_does_not_print_is_an_error(table, row, column, planted, monkeypatch, tmp_path, capsys):
    data = json.loads(json.dumps(table_data(table)))
    next(r for r in data["rows"] if r["row"] == row)["printed"][column] = planted
    for module in (deep_roots, sis, simplenet, patterns):
        monkeypatch.setattr(module, "table_data", lambda name: data)
    assert run_counted(table, [table], tmp_path) == 1
    assert "UNEXPECTED" in capsys.readouterr().out


@pytest.mark.parametrize("width", [120, 160])
@pytest.mark.parametrize("table", PAPER_TABLES)
def test_tables_fit_their_width(table, width):
    from rich.console import Console

    console = Console(width=width, record=True, file=io.StringIO())
    for part in cells_table(table_data(table), table_cells(table), width):
        console.print(part)
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for row in table_data(table)["rows"]:
        assert row["row"].partition(" (")[0] in text


def test_values_read_well():
    assert show_value(5_653_622_950_888) == "5,653,622,950,888"
    assert show_value(64.6231) == "64.623"
    assert show_value((392, 224)) == "392,224"


def test_every_table_is_listed_with_a_line():
    assert list(TABLES) == [*PAPER_TABLES, *EXPERIMENTS, "all"]
    assert all(run.__doc__ and "\n" not in run.__doc__ for run in TABLES.values())


def test_all_tables_measured_do_not_share_one_file(tmp_path):
    with pytest.raises(ValueError, match=r"reproduce: json must be given for one table, or with counts only; got .* for all"):
        TABLES["all"](Arguments(json=tmp_path / "numbers.json"))


def test_every_data_file_belongs_to_a_table():
    files = {path.stem for path in paper.resources.files("sparsekern.reproduce").joinpath("data").iterdir() if path.name.endswith(".json")}
    assert files == {name.replace("-", "_").replace("/", "_") for name in PAPER_TABLES}


def test_the_timed_part_gets_the_cells_and_a_wrong_cell_still_counts(monkeypatch, tmp_path, capsys):
    from sparsekern.reproduce.timed import run as measured

    seen = []
    monkeypatch.setattr(measured, "run_measured", lambda name, args, cells: seen.append((name, len(cells))) or 0)
    assert TABLES["sis/svhn"](Arguments(out=tmp_path)) == 0
    assert seen == [("sis/svhn", 20)]
    monkeypatch.setattr(sis, "counted", _one_weight_more(sis.counted))
    assert TABLES["sis/svhn"](Arguments(out=tmp_path)) == 1
    assert "UNEXPECTED" in capsys.readouterr().out
