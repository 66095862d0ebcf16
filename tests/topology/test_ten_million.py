"""Every generator draws, and every tool reads, ten million connections in seconds."""

import time

import pytest
import torch

from sparsekern.topology import (
    balanced_table,
    clash_free_table,
    connected_units,
    conv_mask,
    expand_blocks,
    fan_in_table,
    grouped_table,
    local_table,
    regular_table,
    rewire,
    scatter,
    spread_table,
)

SIZE, FAN_IN = 1 << 15, 306  # 32768 x 306 = 10,027,008
DRAWS = {
    "fan_in": lambda: fan_in_table(SIZE, SIZE, FAN_IN, seed=0),
    "fan_in, dense": lambda: fan_in_table(8192, 8192, 1224, seed=0),
    "regular": lambda: regular_table(SIZE, SIZE, FAN_IN, seed=0),
    "regular, dense": lambda: regular_table(8192, 8192, 1224, seed=0),
    "balanced": lambda: balanced_table(SIZE, SIZE, FAN_IN, seed=0),
    "balanced, dense": lambda: balanced_table(8192, 8192, 1224, seed=0),
    "spread": lambda: spread_table(SIZE, (32, 32, 32), FAN_IN, seed=0),
    "clash-free": lambda: clash_free_table(SIZE, 40960, 256, parallel=1024, seed=0),
    "blocks": lambda: expand_blocks(regular_table(2048, 2048, 20, seed=0), 16),
    "panels": lambda: expand_blocks(regular_table(SIZE, 512, 320, seed=0), (64, 1)),
    "grouped": lambda: grouped_table(SIZE, SIZE, 64),
    "local": lambda: local_table(SIZE, SIZE, FAN_IN),
    "masks": lambda: conv_mask(4096, 9216, density=0.265, seed=0)[1],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWS)
def test_draws(name):
    torch.set_num_threads(1)
    before = time.thread_time()
    assert DRAWS[name]().numel() >= 10_000_000
    assert time.thread_time() - before < 20  # 0.1 to 5 s; a number for every possible connection of 32768 x 32768 takes over a minute


@pytest.mark.slow
def test_tools():
    torch.set_num_threads(1)
    table = regular_table(SIZE, SIZE, 512, seed=0)
    before = time.thread_time()
    assert 0.5 < scatter([table], [SIZE]).value < 0.8
    assert connected_units([table], [SIZE]).disconnected() == {}
    assert rewire(table, SIZE, 0.5, seed=0).shape == table.shape
    assert time.thread_time() - before < 30
