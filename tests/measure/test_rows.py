"""Rows: written and read back, shown, drawn, compared, and held against floors."""

import dataclasses
import io
import json

import pytest
import torch

from sparsekern.cli import main
from sparsekern.measure import compare, floors, show
from sparsekern.measure.cases import LinearCase
from sparsekern.measure.records import fits, to_json
from sparsekern.measure.rows import TIMES, Row, measure, read_rows, write_rows

CASE = "grouped_conv2d/rn_128_28/g8/n1/float32/nchw"
UNMEASURED = dict.fromkeys(TIMES)
SMALL = LinearCase("small", 4, in_features=64, out_features=32, density=0.25)


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
    rows = [ours(dense=2.0), row("dense", 200.0), row("csr", **UNMEASURED, reason="not implemented"),
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


def edited(folder, **fields):
    """A file whose one row has other values in these fields, for all that its writer would refuse them."""
    write_rows(folder / "rows.jsonl", [ours(dense=2.0)])
    card, line = (folder / "rows.jsonl").read_text().splitlines()
    (folder / "rows.jsonl").write_text(f"{card}\n{json.dumps(json.loads(line) | fields, ensure_ascii=False)}\n", encoding="utf-8")
    return folder / "rows.jsonl"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"p50_us": -1.0}, "p50_us of rows.jsonl line 2 must be finite and above 0, or None as all its times; got -1.0"),
        ({"wall_us": 0}, "wall_us of rows.jsonl line 2 must be finite and above 0, or None as all its times; got 0"),
        ({"p20_us": None}, "p20_us of rows.jsonl line 2 must be finite and above 0, or None as all its times; got None"),
        ({"p50_us": float("nan")}, 'rows.jsonl line 2 must be a row; got {"op"'),
        ({"p80_us": float("inf")}, 'rows.jsonl line 2 must be a row; got {"op"'),
        ({"ratios": {"mkl": [1.0, 2.0]}}, "the ratio to mkl of rows.jsonl line 2 must be three finite numbers above 0; got [1.0, 2.0]"),
        ({"ratios": {"mkl": [1, 0, 2]}}, "the ratio to mkl of rows.jsonl line 2 must be three finite numbers above 0; got [1, 0, 2]"),
    ],
)  # fmt: skip
def test_times_and_ratios_that_nothing_takes_are_refused(tmp_path, capsys, fields, sentence):
    pytest.importorskip("rich")
    file = str(edited(tmp_path, **fields))
    for command in (["compare", file, file], ["bench", "check", file, "--recorded"]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"sparsekern: rows: {sentence}") and said.count("\n") == 1


def test_no_row_is_written_that_cannot_be_read_back(tmp_path):
    file = tmp_path / "rows.jsonl"
    write_rows(file, [row(cpu_us=0.0)])  # a coarse clock
    assert read_rows(file) == [row(cpu_us=0.0)]
    for wrong, said in (
        (row(us=float("nan")), "p20_us of ours of .* must be finite and above 0, or None as all its times; got nan"),
        (row(p50_us=None), "p50_us of ours of .* got None"),
        (row(density=float("inf")), "numbers must be finite to be written; got inf"),
        (row(machine={"memory": [float("nan")]}), "numbers must be finite to be written; got nan"),
    ):
        with pytest.raises(ValueError, match=f"^rows: {said}$"):
            write_rows(file, [row(), wrong])
        assert read_rows(file) == [row(cpu_us=0.0)]
    assert to_json("x", [1.5]) == "[1.5]" and not fits(float("nan"), float | None)


def test_a_row_without_times_says_so():
    with pytest.raises(ValueError, match=r"^row: csr of .* must be measured; got no time$"):
        row("csr", **UNMEASURED).interval_us  # noqa: B018


def test_a_line_ends_only_where_json_lines_do(tmp_path):
    file = edited(tmp_path, served_by="a\u2028b\x85c")
    assert [found.served_by for found in read_rows(file)] == ["a\u2028b\x85c"]
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert len(read_rows(file)) == 1


def test_a_measurement_that_a_file_holds_twice_is_refused(tmp_path, capsys):
    pytest.importorskip("rich")
    twice = [row("csr", **UNMEASURED), row("csr", **UNMEASURED), row(us=50.0), row()]
    for run in (lambda: compare.compare(twice, [row()]), lambda: compare.compare([row()], twice), lambda: compare.check([], twice)):
        with pytest.raises(ValueError, match=f" must hold a measurement once; got {CASE} fwd hot 1t ours twice$"):
            run()
    write_rows(tmp_path / "twice.jsonl", twice)
    write_rows(tmp_path / "once.jsonl", [row()])
    assert main(["compare", str(tmp_path / "once.jsonl"), str(tmp_path / "twice.jsonl")]) == 2
    assert capsys.readouterr().err.startswith("sparsekern: compare: b must hold a measurement once; got ")


def test_brackets_in_names_are_shown_as_they_are(tmp_path, capsys):
    rich_console = pytest.importorskip("rich.console")
    odd = [dataclasses.replace(one, case="[/x]/[red]", op="sparse_linear") for one in (ours(dense=2.0), row("dense"), row("[/x]"))]
    write_rows(tmp_path / "rows.jsonl", odd)
    assert main(["compare", *[str(tmp_path / "rows.jsonl")] * 2]) == 0
    assert "[/x]/[red]" in capsys.readouterr().out
    more = [dataclasses.replace(one, threads=2) for one in odd]
    sizes = [dataclasses.replace(one, memory_bytes={"weight": 8, "index": 8}) for one in odd]
    console = rich_console.Console(width=200, record=True, file=io.StringIO())
    for table in (show.table(odd), show.threads(odd + more), show.memory(sizes)):
        console.print(table)
        assert "[/x]" in console.export_text()


def measured_json(folder, **fields):
    timed = {"model": "nin_root_8", "speedup": {"model": {"ours over dense": [2.0, 2.13, 2.2]}}}
    document = {"batch": 1, "threads": 1, "dtype": "float32", "machine": {"cpu": "a [/x] processor"}, "rows": [timed]} | fields
    (folder / "a.json").write_text(json.dumps({name: value for name, value in document.items() if value is not None}))
    return ["models", "nin*", "--results", str(folder)]


def test_models_shows_what_a_file_says_as_it_is(tmp_path, capsys):
    pytest.importorskip("rich")
    assert main(measured_json(tmp_path)) == 0
    text = capsys.readouterr().out
    assert "2.13x" in text and "a [/x] processor" in text


@pytest.mark.parametrize(
    ("fields", "got"),
    [
        ({"rows": [5]}, "AttributeError: "),
        ({"rows": 5}, "TypeError: "),
        ({"machine": None}, "KeyError: 'machine'"),
        ({"threads": [1]}, "TypeError: threads must be "),
        ({"machine": {"cpu": [1]}}, "TypeError: cpu must be "),
        *[
            ({"rows": [{"model": "nin", "speedup": {"model": {"ours over dense": ratio}}}]}, "TypeError: ")
            for ratio in (2, [1, 2], "abc", [1, 2, float("nan")])
        ],
    ],
)
def test_models_refuses_results_that_reproduce_did_not_write(tmp_path, capsys, fields, got):
    pytest.importorskip("rich")
    assert main(measured_json(tmp_path, **fields)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"sparsekern: models: {tmp_path / 'a.json'} must be JSON that reproduce wrote; got {got}")
    assert said.count("\n") == 1


def test_models_names_a_file_that_is_no_json_and_a_folder_that_is_not_there(tmp_path, capsys):
    pytest.importorskip("rich")
    (tmp_path / "a.json").write_text("{")
    assert main(["models", "--results", str(tmp_path)]) == 2
    assert f"models: {tmp_path / 'a.json'} must be JSON that reproduce wrote; got JSONDecodeError: " in capsys.readouterr().err
    assert main(["models", "--results", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"sparsekern: models: --results must be a folder; got {tmp_path / 'none'}\n"


def test_measuring_leaves_the_callers_random_numbers():
    from sparsekern.measure.cases import ConvCase, select
    from sparsekern.measure.overhead import PAIRS, measure_overhead

    before = torch.get_rng_state()
    for case in (SMALL, next(case for case in select("conv", quick=True) if isinstance(case, ConvCase))):
        measure(case, rounds=1, min_time_ms=0.01)
        assert torch.equal(torch.get_rng_state(), before), case.id
    measure_overhead(PAIRS[0], rounds=1, min_time_ms=0.01)
    assert torch.equal(torch.get_rng_state(), before)


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
