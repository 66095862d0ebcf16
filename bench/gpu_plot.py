"""Pictures of `bench/gpu.py`'s rows: how many times faster than the best rival, and how near to the card's floor.

python bench/gpu_plot.py bench/results/gpu/rows.jsonl      # -> rows_<op>.png beside it
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

#: Cases in one picture, the most.
MOST = 60


def read(path: Path) -> list[dict]:
    """The timed rows in which both ours and a rival were right."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row.get("step") == "timing" and "ratio" in row:
            rows.append(row)
    return rows


def _ours_us(row: dict) -> float:
    return min(t["p50_us"] for name, t in row["times"].items() if name.startswith("ours"))


def draw(path: Path) -> list[Path]:
    """One picture per op and kind of run; returns their files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    files, kinds = [], {}
    for row in read(path):
        op, what, dtype, run = row["case"].split("/")
        kinds.setdefault((op, run), []).append((f"{what} {dtype}", row))
    for (op, run), found in kinds.items():
        found = sorted(found, key=lambda item: item[1]["ratio"])[-MOST:]
        figure, (left, right) = plt.subplots(1, 2, figsize=(13, 1.2 + 0.22 * len(found)), sharey=True, layout="constrained")
        names, ratios = [name for name, _ in found], [row["ratio"] for _, row in found]
        left.barh(names, ratios, color=["#2a7f62" if r >= 1 else "#b5533c" for r in ratios])
        left.axvline(1, color="black", linewidth=0.8)
        left.set_xlabel("times faster than the best rival")
        share = [100 * row["floor_us"] / _ours_us(row) if row.get("floor_us") else 0 for _, row in found]
        right.barh(names, share, color="#44617b")
        right.set_xlabel("% of the floor: bytes, FLOPs or a launch, whichever takes longest")
        right.set_xlim(0, 105)
        for axis in (left, right):
            axis.tick_params(labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
        figure.suptitle(f"{op}, {'training step' if run == 'step' else 'forward'}")
        files.append(path.with_name(f"{path.stem}_{op}_{run}.png"))
        figure.savefig(files[-1], dpi=110)
        plt.close(figure)
    return files


if __name__ == "__main__":
    for picture in draw(Path(sys.argv[1])):
        print(picture)
