"""`import sparsekern` is quick, needs no extra, and leaves the FLOP counter, which imports Triton, to those who count."""

from __future__ import annotations

import subprocess
import sys

LIMIT_S = 0.15  # above torch's own import, on a core that is not shared
SHARE = 0.12  # of torch's own import: beside other work a core takes longer for both
TRIES = 12

CODE = """
import sys, time
begin = time.process_time()
import torch
before, start = set(sys.modules), time.process_time()
import sparsekern
taken_s, torch_s = time.process_time() - start, start - begin
new = {name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names) - {"sparsekern", "torch"}
assert not new, f"imports {new}"
assert "torch.utils.flop_counter" not in sys.modules
from torch.utils.flop_counter import FlopCounterMode
layer, x = sparsekern.SparseLinear(8, 4, fan_in=2), torch.zeros(3, 8)
with FlopCounterMode(display=False) as counter:
    layer(x).sum().backward()
assert counter.get_total_flops() == 2 * 2 * 3 * 4 * 2, counter.get_total_flops()
print(taken_s, torch_s)
"""


def test_import_is_quick_and_the_counter_still_knows_our_ops():
    best_s = float("inf")
    for _ in range(TRIES):  # the first one may find cold files and a busy core
        done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        taken_s, torch_s = map(float, done.stdout.split())
        best_s = min(best_s, taken_s)
        if taken_s <= max(LIMIT_S, SHARE * torch_s):
            return
    raise AssertionError(f"import sparsekern takes {best_s:.2f} s of CPU time above torch")
