"""Rows: written and read back, shown, drawn, compared, and held against floors."""

import dataclasses
import io
import json

import pytest

from sparsekern.measure import compare, floors, show
from sparsekern.measure.rows import Row, measure, read_rows, write_rows

CASE = "grouped_conv2d/rn_128_28/g8/n1/float32/nchw"


def row(provider="ours", us=100.0, **more):
    values = dict(
        op="grouped_conv2d", case=CASE, provider=provider, mode="fwd", cache="hot", dtype="float32", layout="nchw",
        batch=1, sizes={}, density=0.125, flops=1_000_000, dense_flops=8_000_000, bytes=1, threads=1, served_by="cpu/x",
        p20_us=us * 0.98, p50_us=us, p80_us=us * 1.02, wall_us=us, cpu_us=us, rounds=9, calls_per_round=3, error=1e-7,
        machine={"cpu": "c", "torch": "t"},
    )  # fmt: skip
    return Row(**values | more)


def ours(**ratios):
    return row(ratios={name: [r * 0.97, r, r * 1.03] for name, r in ratios.items()}, gated=list(ratios))


def test_rates():
    assert row(us=100.0).gflops == pytest.approx(10.0)
    assert row(us=100.0).effective_gflops == pytest.approx(80.0)
    assert row(p50_us=None).gflops is None


def test_best_rival_is_the_strongest_gated_one():
    mixed = dataclasses.replace(ours(dense=7.0, grouped=1.3, packed=0.5), gated=["dense", "grouped"])
    assert mixed.best_rival()[0] == "grouped"
    assert row("dense").best_rival() is None


def test_write_and_read(tmp_path):
    rows = [ours(dense=2.0), row("dense", 200.0), row("csr", p50_us=None, reason="not implemented"),
            row("dense", machine={"cpu": "other"})]  # fmt: skip
    write_rows(tmp_path / "new" / "rows.jsonl", rows)
    assert read_rows(tmp_path / "new" / "rows.jsonl") == rows
    assert (tmp_path / "new" / "rows.jsonl").read_text().count('{"machine"') == 2


@pytest.mark.parametrize("name, value", [("density", "0.1"), ("batch", 1.5), ("ratios", {"mkl": 2.0}), ("p50_us", [1.0]), ("packed", 1)])
def test_a_value_of_another_type_is_refused(tmp_path, name: str, value):
    write_rows(tmp_path / "rows.jsonl", [ours(dense=2.0)])
    card, line = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text(f"{card}\n{json.dumps(json.loads(line) | {name: value})}\n")
    with pytest.raises(ValueError, match=r"^rows: rows\.jsonl line 2 must be a row; got "):
        read_rows(tmp_path / "rows.jsonl")


def test_a_bad_file_says_where(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"machine": {}}\n{"op": "x"}\n')
    with pytest.raises(ValueError, match=r'^rows: rows\.jsonl line 2 must be a row; got \{"op": "x"\}$'):
        read_rows(tmp_path / "rows.jsonl")


def test_unknown_fields_of_a_newer_version_are_left_out(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [row()])
    text = (tmp_path / "rows.jsonl").read_text().replace('{"op"', '{"new_field": 1, "op"')
    (tmp_path / "rows.jsonl").write_text(text)
    assert read_rows(tmp_path / "rows.jsonl") == [row()]


def test_table_names_rivals_and_prints_no_winner():
    rich_console = pytest.importorskip("rich.console")
    rows = [
        ours(dense=2.0, grouped=1.01),
        row("dense", 200.0),
        row("grouped", 101.0),
        row("csr", p50_us=None, reason="no [x]"),
    ]
    console = rich_console.Console(width=200, record=True, file=io.StringIO())
    console.print(show.table(rows))
    text = console.export_text()
    assert "2.00x" in text
    assert "no winner (1.01x)" in text
    assert "not available: no [x]" in text
    assert show.summary(rows) == [f"{CASE} fwd hot: ours 1.01x grouped (0.98..1.04)"]


def test_a_busy_core_is_named():
    assert show.busy([row(), row("dense")]) == ""
    assert "wall time 2.00x CPU time" in show.busy([row(wall_us=200.0, cpu_us=100.0)])


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    show.plot([ours(dense=2.0), row("dense")], tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 1000
    with pytest.raises(ValueError, match=r"^plot: rows must hold a measurement of ours with a rival; got none$"):
        show.plot([row("dense")], tmp_path / "none.png")


def test_compare_gives_verdicts():
    a = [row("ours", 100.0), row("dense", 100.0), row("csr", 100.0), row("gone", 1.0)]
    b = [row("ours", 50.0), row("dense", 101.0), row("csr", 150.0), row("new", 1.0)]
    both, single = compare.compare(a, b)
    assert [(c.key[-1], c.verdict) for c in both] == [("ours", "FAST"), ("dense", "SAME"), ("csr", "SLOW")]
    assert both[0].ratio == 2.0
    assert [key[-1] for key in single] == ["gone", "new"]


def test_threads_are_part_of_the_key():
    one, two = row("ours", 100.0), row("ours", 60.0, threads=2)
    assert (one.key[3], two.key[3]) == ("1t", "2t")
    both, single = compare.compare([one], [two])
    assert not both
    assert len(single) == 2
    assert list(show.groups([one, two])) == [one.key[:-1], two.key[:-1]]
    mine = dataclasses.replace(ours(dense=1.0), threads=2)  # goals are of one thread; the general promise is of any
    assert {c.floor for c in compare.check([mine])} == {floors.NEVER_SLOWER}


def test_check_holds_rows_against_floors():
    goals = floors.GOALS[CASE]
    good = compare.check([ours(dense=goals["dense"] * 1.2, grouped=goals["grouped"] * 1.2)])
    assert {c.rival: c.floor for c in good} == goals
    assert all(c.kept for c in good)
    bad = compare.check([ours(dense=goals["dense"] * 0.5, grouped=2.0)], committed=[ours(dense=9.0)])
    assert [(c.rival, c.kept, c.committed) for c in bad] == [("dense", False, 9.0), ("grouped", True, None)]


def test_never_slower_holds_for_any_case_and_training_only_when_sparse():
    other = dataclasses.replace(ours(dense=0.8), case="sparse_linear/x")
    assert [(c.floor, c.kept) for c in compare.check([other])] == [(0.95, False)]
    training = dataclasses.replace(other, mode="fwd_bwd", density=0.5)
    assert [c.kept for c in compare.check([training])] == [True]
    sparse = dataclasses.replace(training, density=0.25)
    assert [c.kept for c in compare.check([sparse])] == [False]


@pytest.mark.parametrize("cold", [False, True])
def test_measure_gives_a_row_per_provider(cold):
    from sparsekern.measure.cases import LinearCase

    case = LinearCase("small", 4, in_features=64, out_features=32, density=0.25)
    rows = measure(case, rounds=3, min_time_ms=0.1, cold=cold)
    by_name = {r.provider: r for r in rows}
    assert {"ours", "dense", "dense_prepacked", "csr", "csr_mm", "embedding_bag"} <= set(by_name)
    mine = by_name["ours"]
    assert mine.flops == 2 * 4 * 32 * 16
    assert mine.density == 0.25
    assert mine.rounds == (9 if cold else 3)
    assert mine.served_by
    assert mine.clock == "wall"
    assert mine.p50_us == mine.wall_us
    assert set(mine.ratios) >= {"dense", "csr"}
    assert all(r.error < 1e-5 for r in rows if r.p50_us)
    assert mine.memory_bytes["weight"] == 32 * 16 * 4
    assert by_name["dense"].memory == (32 * 64 + 32) * 4
    assert by_name["mkl_ie"].p50_us or by_name["mkl_ie"].reason


def test_more_threads_say_so():
    from sparsekern.measure.cases import LinearCase
    from sparsekern.measure.protocol import threads

    with threads(2):
        rows = measure(LinearCase("small", 4, in_features=64, out_features=32, density=0.25), rounds=2, min_time_ms=0.1)
    assert {(r.threads, r.key[3], r.machine["threads"]) for r in rows} == {(2, "2t", 2)}


def test_cpu_clock():
    from sparsekern.measure.cases import LinearCase
    from sparsekern.measure.protocol import threads

    case = LinearCase("small", 4, in_features=64, out_features=32, density=0.25)
    with threads(1):
        rows = measure(case, rounds=3, min_time_ms=0.1, clock="cpu")
    assert all(r.p50_us == r.cpu_us for r in rows if r.p50_us)
    with threads(2), pytest.raises(ValueError, match=r"^bench: clock must be wall for more than one thread; got cpu$"):
        measure(case, clock="cpu")
