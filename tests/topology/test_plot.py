"""Pictures of topologies are drawn, into files, without touching the caller's matplotlib."""

from __future__ import annotations

import builtins

import pytest
import torch

from sparsekern.topology import regular_table, scatter
from sparsekern.topology.plot import plot_adjacency, plot_scatter, plot_windows

TABLES = [regular_table(16, 32, 4, seed=0), regular_table(32, 16, 8, seed=1)]


def test_pictures_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    plot_adjacency(TABLES, [16, 32], tmp_path / "adjacency.png")
    plot_adjacency(TABLES[:1], [(4, 4)], tmp_path / "one.png")
    plot_windows(TABLES, [(4, 4), 32], tmp_path / "windows.png")
    plot_scatter({"random": scatter(TABLES, [16, 32]), "full": scatter([torch.ones(4, 4).bool()])}, tmp_path / "scatter.png")
    for name in ("adjacency", "one", "windows", "scatter"):
        picture = imread(tmp_path / f"{name}.png")
        assert min(picture.shape[:2]) > 300 and picture[..., :3].std() > 0.05
    with pytest.raises(ValueError, match=r"^plot_scatter: scatters must be at least one; got none$"):
        plot_scatter({}, tmp_path / "none.png")


def test_a_picture_is_of_all_junctions_or_none(tmp_path):
    pytest.importorskip("matplotlib")
    for sizes, sentence in (
        ([16], "sizes must be one per junction, 2, or one per layer; got 1"),
        ([16, 32, 17], "sizes must be of 16 output neurons at its end; got 17"),
        (None, "sizes must be given for index tables; got None"),
    ):
        with pytest.raises(ValueError) as raised:
            plot_adjacency(TABLES, sizes, tmp_path / "none.png")
        assert str(raised.value) == f"plot_adjacency: {sentence}" and not (tmp_path / "none.png").exists()
    plot_adjacency([torch.ones(4, 8).bool()], None, tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").stat().st_size > 1000


def test_matplotlib_is_named_where_it_is_missing(monkeypatch, tmp_path):
    real_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"^plot_adjacency: matplotlib must be installed: pip install sparsekern\[plots\]$"):
        plot_adjacency(TABLES, [16, 32], tmp_path / "x.png")
