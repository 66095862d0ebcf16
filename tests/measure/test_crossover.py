"""Where sparse stops winning: taken from rows, said in words, printed and drawn."""

import io

import pytest

from sparsekern.measure import crossover, show
from sparsekern.measure.crossover import curves, said, wins_below
from sparsekern.measure.rows import Row


def row(provider, density, us, *, kind="", batch=1, **more):
    ours = provider.startswith("ours")
    case = f"sparse_linear/64-32/{density:.3g}{kind}/n{batch}/float32/rows"
    sizes = {"in_features": 64, "out_features": 32, "block_size": 16 if "block" in kind else 1, "topology": "random"}
    values = dict(
        op="sparse_linear", case=case, provider=provider, mode="fwd", cache="hot", dtype="float32", layout="rows", batch=batch,
        sizes=sizes, density=density, flops=1, dense_flops=1, bytes=1, threads=1, served_by="x", p20_us=us, p50_us=us, p80_us=us,
        ratios={name: [times / us] * 3 for name, times in (("dense", 100.0), ("mkl_ie", 400 * density))} if ours else {},
        gated=["dense"] if ours else [], machine={"cpu": "c", "torch": "t"},
    )  # fmt: skip
    return Row(**values | more)


def rows(**more):
    return [
        row(provider, density, us, **more)
        for density, ours_us in ((0.05, 10.0), (0.2, 40.0), (0.8, 160.0))
        for provider, us in (("ours", ours_us), ("ours_packed", ours_us / 2), ("dense", 100.0), ("mkl_ie", 400 * density))
    ]


def test_wins_below():
    # times proportional to density: 2.5 times faster at 20 %, so 1.05 times at 20 % * 2.5 / 1.05
    assert wins_below([(0.05, 10.0), (0.2, 2.5), (0.8, 0.625)]) == (pytest.approx(0.2 * 2.5 / 1.05), False)
    assert wins_below([(0.05, 10.0), (0.2, 2.5)]) == (0.2, True)
    assert wins_below([(0.05, 1.04), (0.2, 0.9)]) == (0.0, False)
    assert wins_below([]) == (0.0, False)


def test_in_words():
    assert said([(0.05, 10.0), (0.2, 2.5), (0.8, 0.625)]) == "48 %"
    assert said([(0.05, 10.0), (0.2, 2.5)]) == ">= 20 %"
    assert said([(0.05, 0.5), (0.2, 2.5)]) == ">= 20 % (not at 5 %)"
    assert said([(0.05, 1.0)]) == "never"
    assert said([]) == "-"


def test_a_curve_is_one_layer_run_and_batch():
    mixed = [*rows(), *rows(batch=8), *rows(kind="/block16"), *rows(threads=2), *rows(cache="cold"), row("ours", 0.1, 1.0, kind="/balanced",
             sizes={"block_size": 1, "topology": "balanced"})]  # fmt: skip
    found = curves(mixed)
    assert [(c.kind, c.batch, c.cache, c.threads) for c in found] == [
        ("random", 1, "hot", 1), ("random", 8, "hot", 1), ("blocks of 16", 1, "hot", 1), ("random", 1, "hot", 2), ("random", 1, "cold", 1),
    ]  # fmt: skip
    assert found[0].ratios("ours", "best") == [(0.05, 10.0), (0.2, 2.5), (0.8, 0.625)]
    assert found[0].ratios("ours_packed", "mkl_ie") == [(0.05, 4.0), (0.2, 4.0), (0.8, 4.0)]
    assert curves([row("ours", 0.1, 1.0, op="grouped_mm")]) == []


def text_of(table):
    console = pytest.importorskip("rich.console").Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_table():
    lines = text_of(crossover.table(curves(rows()))).splitlines()
    assert lines[2].split("  ")[0] == "64-32"
    assert [word.strip() for word in lines[2].split("  ") if word.strip()][-4:] == ["48 %", "48 %", ">= 80 %", ">= 80 %"]


def test_plot_writes_a_file_per_page(tmp_path):
    pytest.importorskip("matplotlib")
    one = crossover.plot(curves(rows()), tmp_path / "one.png")
    assert one == [tmp_path / "one.png"]
    two = crossover.plot(curves([*rows(), *rows(batch=8), *rows(kind="/block16", threads=2)]), tmp_path / "two.svg")
    assert two == [tmp_path / "two-random-float32.svg", tmp_path / "two-blocks-float32-2t.svg"]
    assert all(file.stat().st_size > 1000 for file in one + two)
    assert "wins below 48 %" in two[0].read_text() or two[0].read_text().count("<path") > 20


def test_memory_table():
    held = {
        "dense": {"weight": 8_000_000},
        "csr": {"weight": 800_000, "index": 1_600_000},
        "ours": {"weight": 800_000, "index": 800_000, "plan": 400_000, "bias": 5},
        "ours_packed": {"weight": 800_000, "pack": 200_000},
    }
    found = [row(name, 0.1, 1.0, memory_bytes=parts) for name, parts in held.items()]
    cells = text_of(show.memory(found)).splitlines()[2].split()
    assert cells == ["64-32/0.1", "float32", "8", "2.4", "1.6", "2", "0.8", "0.8", "0.4", "0.25", "1", "0.2", "0.12"]
    assert found[2].memory == 2_000_005  # the bias too
    assert show.memory([row("ours", 0.1, 1.0)]) is None


def test_threads_table():
    one, two = rows(), [row("ours", 0.05, 5.0, threads=2)]
    assert show.threads(one) is None
    text = text_of(show.threads(one + two))
    assert "2.00x" in text
    assert text.count("rows fwd hot ours") == 1
