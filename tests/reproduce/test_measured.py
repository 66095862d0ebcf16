"""The runner, the tables, the files and the plot, in their smallest form. No test here asserts a speed."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsekern.measure.protocol import Timing
from sparsekern.models import list_models
from sparsekern.reproduce import TABLES, paper_rows
from sparsekern.reproduce.tables import Arguments
from sparsekern.reproduce.timed.competitors import NCHW, Competitor
from sparsekern.reproduce.timed.layer_times import layer_times
from sparsekern.reproduce.timed.rounds import better_clock, read_by, time_calls
from sparsekern.reproduce.timed.run import make_images, run_measured
from sparsekern.reproduce.timed.runner import Runner
from sparsekern.reproduce.timed.tables import TIMED_TABLES
from sparsekern.reproduce.timed.variants import Variant, timed_rows

pytest.importorskip("rich")

TINY = {"seconds_budget": 0.0, "max_rounds": 1}


def run(table, *models, batch=2, **options):
    table = TIMED_TABLES[table]
    rows = [row for row in timed_rows(paper_rows(table.paper)) if row.variant.model in models]
    images, _ = make_images(None, batch)
    return Runner(table, images, "noise", batch, **{**TINY, **options}).run(rows)


@pytest.fixture(scope="module")
def nin():
    seen = []
    ours = [Competitor("stand-in for ours", NCHW, torch.nn.Conv2d)]
    result = run("deep-roots/nin", "nin", "nin_root_16", ours=ours, progress=lambda doing, fraction: seen.append(fraction))
    assert seen == sorted(seen) and seen[-1] == 1.0
    return result


def test_counts_beside_the_papers_and_every_role_timed(nin):
    dense, root = nin.rows
    assert (dense.counted.flops, root.counted.flops) == (222_487_946, 93_316_490)  # Deep Roots, table 2, in full
    assert root.flop_reduction == dense.counted.flops / root.counted.flops
    for part in ("stack", "model"):
        assert {role for p, role, _ in root.timings if p == part} == {"dense", "grouped", "ours", "ours_dense"}
        assert {role for p, role, _ in dense.timings if p == part} == {"dense", "ours"}
        assert root.best(part, "dense").median_us <= root.torch_default(part).median_us
        low, middle, high = root.speedup(part, "ours")
        assert 0 < low <= middle <= high
    assert dense.best("model", "grouped") is None and dense.speedup("model", "grouped") is None


def test_layers_are_timed_in_the_running_model(nin):
    dense, root = nin.rows
    names = [f"conv{level}{layer}" for level in "123" for layer in "abc"]
    assert [layer.path for layer in root.layers] == names
    assert [layer.path for layer in root.layers if layer.sparse] == ["conv2a", "conv3a"]
    assert root.layers[3].weight == "192 x 6 x 5 x 5"
    assert set(root.layer_times) == {"dense", "grouped", "ours"} == set(root.profiled) and set(dense.layer_times) == {"dense", "ours"}
    for times in root.layer_times.values():
        for clock in ("wall", "CPU"):
            assert list(times.layers[clock]) == names
            assert min(times.layers[clock].values()) > 0 and times.model[clock] > 0
    assert root.share("ours", nin.clock) > 0 and dense.share("ours", nin.clock) is None


def test_layers_of_one_pass_are_parts_of_it():
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
    found = layer_times({"net": (net, torch.randn(16, 64))}, {"net": ["0", "2"]}, passes=1)["net"]
    for clock in ("wall", "CPU"):
        assert 0 < sum(found.layers[clock].values()) < found.model[clock]
        assert 0 < found.share(["2"], clock) < found.share(["0", "2"], clock) < 1


@pytest.mark.parametrize(
    ("table", "models", "sparse"),
    [
        ("sis/svhn", ["sis_svhn_3"], [["conv1a", "conv2a", "conv3a"]]),
        ("patterns/savings", ["morse_cl"], [["junction1", "junction2"]]),
        ("simplenet/archs", ["simplenet_310k"], [[]]),
    ],
)
def test_every_kind_of_table_runs(table, models, sparse):
    result = run(table, *models, batch=1)
    assert [[layer.path for layer in row.layers if layer.sparse] for row in result.rows] == sparse
    for row in result.rows:
        roles = {"dense", "ours"} if row.of.is_dense else {"dense", "masked", "ours", "ours_dense"}
        assert {role for _, role, _ in row.timings} == roles
        assert row.flop_reduction >= 1 and row.served


def test_the_twin_of_sparse_junctions_is_the_same_net_fully_connected():
    variant = Variant("morse_cl", (("fan_out", (512, 32)),))
    assert variant.dense == Variant("morse_cl") and variant.name == "morse_cl(fan_out=(512, 32))"
    assert [type(layer).__name__ for layer in variant.build()][-3:] == ["SparseLinear", "ReLU", "SparseLinear"]
    assert [type(layer).__name__ for layer in variant.dense.build()][-3:] == ["Linear", "ReLU", "Linear"]
    assert all(bias.abs().min() > 0 for name, bias in variant.build().named_parameters() if name.endswith("bias"))


def test_every_table_has_rows_to_time():
    for table in TIMED_TABLES.values():
        rows = timed_rows(paper_rows(table.paper))
        assert rows and all(row.variant.model in list_models() for row in rows), table.name
        assert len({row.variant for row in rows}) == len(rows) and len({row.label for row in rows}) == len(rows), table.name
        assert table.batches[0] == 1
    assert set(TIMED_TABLES) <= set(TABLES)
    assert {row.family for row in timed_rows(paper_rows("deep_roots_nin"))} == {"other", "root", "tree", "column"}


def test_times_are_per_image_and_json_is_plain(nin):
    from sparsekern.reproduce.timed.report import result_json

    document = json.loads(json.dumps(result_json(nin, cells=[{"id": "nin/flops", "recomputed": 1}])))
    root = document["rows"][1]
    assert root["counted"] == {"flops": root["flops"], "params": root["params"]}
    timing = nin.rows[1].best("model", "ours")
    assert root["ms_per_image"]["model"]["ours"]["stand-in for ours"][1] == pytest.approx(timing.median_us / 2000, abs=1e-5)
    assert "untrained" in " ".join(document["caption"]) and document["images"] == "noise"
    assert set(root["speedup"]["model"]) == {"ours over dense", "grouped over dense", "ours over grouped", "ours over ours_dense"}
    assert document["cells"] == [{"id": "nin/flops", "recomputed": 1}] and document["machine"]["cpu"]
    layers = root["layers"]["each"]
    assert [layer["layer"] for layer in layers if layer["grouped"]] == ["conv2a", "conv3a"]
    assert set(layers[0]["ms_per_image"]) == {"dense", "grouped", "ours"} == set(root["layers"]["model_ms_per_image"])
    assert root["grouped_share"]["ours"] > 0 and root["dense"] == "nin"
    assert root["paper_cpu_speedup"] == pytest.approx(39.0 / 23.0)  # Deep Roots, table 2


def test_on_a_busy_machine_cpu_time_counts_and_is_named(nin):
    from sparsekern.reproduce.timed.caption import caption
    from sparsekern.reproduce.timed.table import measured_table

    def slowed(timing, factor):  # neighbours stretch the wall time, not the thread's own
        return replace(timing, samples_us=tuple(factor * us for us in timing.cpu_samples_us))

    for factor, clock in ((1.01, "wall"), (2.0, "CPU")):
        timings = {key: slowed(timing, factor) for key, timing in nin.rows[1].timings.items()}
        found, share = better_clock(timings.values(), threads_count=1)
        assert found == clock and share == pytest.approx(1 / factor)
        row = replace(nin.rows[1], timings=read_by(found, timings))
        timing = nin.rows[1].best("model", "ours")
        assert row.best("model", "ours").median_us == pytest.approx((1.0 if clock == "CPU" else factor) * timing.cpu_median_us)
        busy = replace(nin, rows=[row], clock=found, share=share)
        assert ("The machine was busy: the measuring thread ran 50%" in " ".join(caption(busy))) == (clock == "CPU")
        assert f"{clock} ms per image" in measured_table(busy).title
        # several threads: the calling thread's CPU time says nothing about the others
        assert better_clock(timings.values(), threads_count=2)[0] == "wall"


@pytest.mark.parametrize("width", [110, 130, 180])
def test_tables_fit_their_width(nin, width):
    from rich.console import Console

    from sparsekern.reproduce.timed.table import measured_tables

    console = Console(width=width, record=True, file=io.StringIO())
    for part in measured_tables(nin, width, layers=True):
        console.print(part)
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for expected in ("2.38", "1.70", "192 x 6 x 5 x 5", "all else", "share"):
        assert expected in text
    assert text.count("dense") and ("like" in text) and text.count("Measured, ") == (1 if width == 180 else 2)


def test_a_speedup_inside_the_noise_is_in_brackets(nin):
    from sparsekern.reproduce.timed.table import _speedup

    def timing(*samples_us):
        return Timing("", samples_us, samples_us, 1)

    dense = timing(100.0, 104.0, 110.0)
    for ours, text in ((timing(50.0, 52.0, 55.0), "2.00"), (timing(98.0, 104.0, 109.0), "(1.01)")):
        row = replace(nin.rows[1], timings={("model", "dense", "d"): dense, ("model", "ours", "o"): ours})
        assert _speedup(row, "model", "ours") == text


def test_competitors_well_behind_are_left_out_only_of_long_rows():
    import time

    torch.set_num_threads(1)  # judged by its own time, whatever runs beside it

    def slow(seconds):
        def call():
            end = time.thread_time() + seconds
            while time.thread_time() < end:
                pass

        return call

    calls = {
        ("model", "dense", "default"): slow(0.3),
        ("model", "dense", "slow"): slow(0.3),
        ("model", "dense", "fast"): slow(0.03),
        ("model", "ours", "only"): slow(0.03),
    }
    timed = time_calls(calls, 0.0, 5, {("model", "dense", "default")}, lambda fraction: None)
    assert set(timed.left_out) == {("model", "dense", "slow")} and timed.rounds == 3
    assert set(timed.timings) == set(calls) - set(timed.left_out)
    assert all(timing.calls_per_round == 1 and len(timing.samples_us) == 3 for timing in timed.timings.values())
    short = time_calls({key: slow(1e-4) for key in calls}, 0.0, 5, set(), lambda fraction: None)
    assert not short.left_out and set(short.timings) == set(calls)


@pytest.mark.slow
def test_a_dense_competitor_once_left_out_stays_out_of_the_rows_of_its_twin(monkeypatch):
    from sparsekern.reproduce.timed import runner

    behind, called = ("model", "dense", "nn.Conv2d channels_last"), []

    def leave_out(calls, *args):
        called.append(set(calls))
        timed = time_calls({key: call for key, call in calls.items() if key != behind}, *args)
        return replace(timed, left_out={behind: 5.0} if behind in calls else {})

    monkeypatch.setattr(runner, "time_calls", leave_out)
    result = run("deep-roots/nin", "nin", "nin_root_8", "nin_root_16", batch=1)
    assert [behind in calls for calls in called] == [True, False, False]
    assert [row.left_out for row in result.rows] == [{behind: 5.0}] * 3
    ours = {("model", "ours_dense", f"sparsekern {layout}") for layout in ("NCHW", "channels_last", "packed channels_last")}
    assert ours <= called[1] and not ours & called[0]


def test_plots_are_written(nin, tmp_path):
    pytest.importorskip("matplotlib")
    from sparsekern.reproduce.timed.plot import Point, _names, plot_speedups
    from sparsekern.reproduce.timed.report import points

    far = [Point(f"net {x}", "other", x, (0.9 * x, x, 1.1 * x), None, None) for x in (1.01, 2.0, 15.0)]  # logarithmic axes
    one = [Point("net", "other", 2.0, (1.5, 1.6, 1.7), (1.1, 1.2, 1.3), 1.4)]
    for name, drawn in {"nin": points(nin), "far": far, "one": one}.items():
        plot_speedups(drawn, tmp_path / f"{name}.png", title="title", caption=["caption"])
        written = (tmp_path / f"{name}.png").read_bytes()
        assert written.startswith(b"\x89PNG") and len(written) > 10_000
    assert [point.label for point in points(nin)] == ["root-16"]
    names, key = _names([replace(one[0], label=label) for label in ("CIFAR10 conv+2CLs (1,1)", "Morse CL (512,32)")])
    assert names == ["a", "b"] and key == ["a: CIFAR10 conv+2CLs (1,1); b: Morse CL (512,32)."] and _names(one) == (["net"], [])


def test_a_table_from_end_to_end(tmp_path, monkeypatch, capsys):
    from sparsekern.reproduce.timed import run as measured

    rows = [row for row in paper_rows("patterns_savings") if row.get("model") == "morse_cl"]
    monkeypatch.setattr(measured, "paper_rows", lambda name: rows)
    monkeypatch.setattr(measured, "QUICK", TINY)
    monkeypatch.setenv("COLUMNS", "60")  # narrower than any table: lines run over, cells are not cut
    args = Arguments(batches=(1, 3), out=tmp_path / "out", quick=True, layers=True)
    assert run_measured("patterns/savings", args) == 0
    printed = capsys.readouterr().out
    assert "Morse CL" in printed and "…" not in printed and "junction2" in printed
    for name, batch in (("patterns_savings.json", 1), ("patterns_savings_batch3.json", 3)):
        document = json.loads((tmp_path / "out" / name).read_text())
        assert document["batch"] == batch and document["table"] == "patterns/savings" and len(document["rows"]) == 1
        assert document["images"] == f"normal noise [{batch}, 64]"
    assert args.json is None and len(list((tmp_path / "out").glob("*.png"))) in (0, 2)


def test_bad_arguments_are_refused():
    for change, sentence in (
        ({"batches": (0,)}, "reproduce: batch must be at least 1; got 0"),
        ({"threads": 0}, "reproduce: threads must be at least 1; got 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            run_measured("deep-roots/nin", Arguments(out=Path("nowhere"), **change))
    with pytest.raises(ValueError, match=r"reproduce: table must be one of deep-roots/nin, .*; got 'deep-roots/vgg'"):
        run_measured("deep-roots/vgg", Arguments())
    with pytest.raises(ValueError, match="reproduce: rows must have a registered model; got none"):
        run("deep-roots/nin")


def test_torch_settings_are_restored():
    before = torch.get_num_threads(), torch.is_grad_enabled(), torch.random.get_rng_state()
    run("patterns/savings", "morse_cl", batch=1, ours=[])
    after = torch.get_num_threads(), torch.is_grad_enabled(), torch.random.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])


def test_inputs_by_shape():
    images, name = make_images(None, 2)
    assert images((3, 40, 40)).shape == (2, 3, 40, 40) and images((64,)).shape == (2, 64)
    assert images((64,)) is images((64,))
    assert name({(3, 40, 40), (64,)}).startswith("2 patches of 40x40") and "normal noise [2, 64]" in name({(3, 40, 40), (64,)})
