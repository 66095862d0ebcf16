"""The table end to end in its smallest form, with torch's layers alone."""

import io
import json
from dataclasses import replace

import pytest
import torch

from sparsekern.reproduce import TABLES, paper_rows
from sparsekern.reproduce.competitors import NCHW, Competitor
from sparsekern.reproduce.deep_roots import run_nin

pytest.importorskip("rich")

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def result():
    seen = []
    ours = [Competitor("stand-in for ours", NCHW, torch.nn.Conv2d)]
    result = run_nin(
        IMAGES,
        images_name="noise",
        seconds_budget=0.0,
        max_rounds=1,
        models=["nin", "nin_root_16"],
        ours=ours,
        progress=lambda doing, fraction: seen.append(fraction),
    )
    assert seen == sorted(seen) and seen[-1] == 1.0
    return result


def test_counts_beside_the_papers_and_every_role_timed(result):
    dense, root = result.rows
    assert (dense.flops, root.flops) == (222_487_946, 93_316_490)
    assert root.flop_reduction == dense.flops / root.flops
    for part in ("stack", "model"):
        assert {role for p, role, _ in root.timings if p == part} == {"dense", "grouped", "ours", "ours_dense"}
        assert {role for p, role, _ in dense.timings if p == part} == {"dense", "ours"}
        assert root.best(part, "dense").median_us <= root.default(part).median_us
        low, middle, high = root.speedup(part, "ours")
        assert 0 < low <= middle <= high
    assert dense.best("model", "grouped") is None and dense.speedup("model", "grouped") is None


def test_times_are_per_image_and_json_is_plain(result):
    from sparsekern.reproduce.report import nin_json

    document = json.loads(json.dumps(nin_json(result)))
    root = document["rows"][1]
    assert root["counted"] == {"flops": root["flops"], "params": root["params"]}
    timing = result.rows[1].best("model", "ours")
    assert root["ms_per_image"]["model"]["ours"]["stand-in for ours"][1] == pytest.approx(timing.median_us / 2000, abs=1e-5)
    assert "untrained" in " ".join(document["caption"]) and document["images"] == "noise"
    assert set(root["speedup"]["model"]) == {
        "ours over dense",
        "grouped over dense",
        "ours over grouped",
        "ours over ours_dense",
    }


def test_on_a_busy_machine_cpu_time_counts_and_is_named(result):
    from sparsekern.reproduce.deep_roots import _on_the_better_clock
    from sparsekern.reproduce.table import caption, measured_table

    def slowed(timing, factor):  # neighbours stretch the wall time, not the thread's own
        return replace(timing, samples_us=tuple(factor * us for us in timing.cpu_samples_us))

    for factor, clock in ((1.01, "wall"), (2.0, "CPU")):
        rows = [replace(row, timings={k: slowed(t, factor) for k, t in row.timings.items()}) for row in result.rows]
        chosen, found, share = _on_the_better_clock(rows, threads_count=1)
        assert found == clock and share == pytest.approx(1 / factor)
        timing = result.rows[1].best("model", "ours")
        stretch = 1.0 if clock == "CPU" else factor
        assert chosen[1].best("model", "ours").median_us == pytest.approx(stretch * timing.cpu_median_us)
        busy = replace(result, rows=chosen, clock=found, share=share)
        assert ("The machine was busy: the measuring thread ran 50%" in " ".join(caption(busy))) == (clock == "CPU")
        assert f"{clock} ms per image" in measured_table(busy).title
        # several threads: the calling thread's CPU time says nothing about the others
        assert _on_the_better_clock(rows, threads_count=2)[1] == "wall"


@pytest.mark.parametrize("width", [100, 120, 160])
def test_tables_fit_their_width(result, width):
    from rich.console import Console

    from sparsekern.reproduce.table import nin_tables

    console = Console(width=width, record=True, file=io.StringIO())
    for part in nin_tables(result, width):
        console.print(part)
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for expected in ("93,316,490", "244,682", "0.9167", "23.0", "0.475", "2.38", "equal"):
        assert expected in text
    assert "differs" not in text


def test_plot_is_written(result, tmp_path):
    pytest.importorskip("matplotlib")
    from sparsekern.reproduce.plot import plot_speedups
    from sparsekern.reproduce.report import nin_points

    plot_speedups(nin_points(result), tmp_path / "plot.png", title="title", caption=["caption"])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_torch_settings_are_restored_and_bad_input_is_refused():
    before = torch.get_num_threads()
    for images in (IMAGES[0], IMAGES.double(), IMAGES[:0], IMAGES[:, :1]):
        with pytest.raises(ValueError, match=r"reproduce: images must be \[N, 3, 32, 32\] float32 with N >= 1; got \["):
            run_nin(images, images_name="noise", ours=[])
    with pytest.raises(ValueError, match=r"reproduce: models must be some of nin, nin_root_2.*; got nin_root_3"):
        run_nin(IMAGES, images_name="noise", models=["nin_root_3"], ours=[])
    assert torch.get_num_threads() == before


def test_the_table_is_registered():
    assert "deep-roots/nin" in TABLES
    assert len(paper_rows("deep_roots_nin")) == 13
