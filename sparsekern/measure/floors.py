"""What ours must reach, as ratios to rivals that were timed in the same rounds.

Two kinds: the general promise (never slower than the strongest gated rival), and goals for the quick cases, which leave
room below what an idle machine reaches, so that only a real loss of speed falls through.
"""

from __future__ import annotations

from sparsekern.measure.rows import Row

NEVER_SLOWER = 0.95  # of the strongest gated rival; the rest is noise and the choice between the two
TRAINING_DENSITY = 0.25  # above it a training step may lose to dense, and layers say so

# What the project set out to reach (the median of several runs holds it: tests/measure/test_committed_rows.py).
MUSTS: dict[str, dict[str, float]] = {
    "sparse_linear/3072-768/0.1/n1/float32/rows": {"dense": 6.0},
    "sparse_linear/3072-768/0.1/n64/float32/rows": {"dense": 4.0},
    "sparse_conv2d/nin_conv2a/spatial/0.25/n1/float32/nchw": {"dense": 2.5, "dense_other": 2.5, "dense_prepacked_other": 2.5},
    "sparse_conv2d/nin_conv2a/synapse/0.25/n1/float32/nchw": {"dense": 2.0, "dense_other": 2.0, "dense_prepacked_other": 2.0},
}

# What one run of `bench check` asserts: case id → rival → ours so many times faster (forward, hot). Below the musts where single
# runs scatter around them (one row of SparseLinear, synapse masks).
GOALS: dict[str, dict[str, float]] = {
    "sparse_linear/3072-768/0.25/n1/float32/rows": {"dense": 2.2},
    "sparse_linear/3072-768/0.25/n64/float32/rows": {"dense": 1.8},
    "sparse_linear/3072-768/0.1/n1/float32/rows": {"dense": 5.5},
    "sparse_linear/3072-768/0.1/n64/float32/rows": {"dense": 4.0},
    "sparse_linear/3072-768/0.25/block16/n1/float32/rows": {"dense": 3.0},
    "sparse_linear/3072-768/0.25/block16/n64/float32/rows": {"dense": 2.5},
    "sparse_linear/3072-768/0.1/block16/n1/float32/rows": {"dense": 7.0},
    "sparse_linear/3072-768/0.1/block16/n64/float32/rows": {"dense": 6.0},
    "grouped_conv2d/nin_conv2a/g8/n1/float32/nchw": {"dense": 6.0, "grouped": 1.0},
    "grouped_conv2d/nin_conv2a/g8/n1/float32/channels_last": {"dense": 6.0, "grouped": 1.0, "grouped_prepacked": 1.0},
    "grouped_conv2d/nin_conv2a/g16/n1/float32/nchw": {"grouped": 1.0},
    "grouped_conv2d/nin_conv2a/g16/n1/float32/channels_last": {"grouped": 1.0, "grouped_prepacked": 1.0},
    "grouped_conv2d/nin_conv3a/g4/n1/float32/nchw": {"grouped": 1.0},
    "grouped_conv2d/nin_conv3a/g4/n1/float32/channels_last": {"grouped": 1.0, "grouped_prepacked": 1.0},
    "grouped_conv2d/nin_conv3a/g8/n1/float32/nchw": {"grouped": 1.0},
    "grouped_conv2d/nin_conv3a/g8/n1/float32/channels_last": {"grouped": 1.0, "grouped_prepacked": 1.0},
    "grouped_conv2d/rn_128_28/g8/n1/float32/nchw": {"dense": 5.5, "grouped": 1.05},
    "grouped_conv2d/rn_128_28/g8/n1/float32/channels_last": {"dense": 5.5, "grouped": 1.05},
    "grouped_conv2d/rn_256_14/g4/n1/float32/nchw": {"dense": 3.2, "grouped": 1.0},
    "grouped_conv2d/rn_256_14/g4/n1/float32/channels_last": {"dense": 3.5, "grouped": 1.1},
    "sparse_conv2d/nin_conv2a/spatial/0.25/n1/float32/nchw": {"dense": 2.5, "dense_other": 2.5, "dense_prepacked_other": 2.5},
    "sparse_conv2d/nin_conv2a/spatial/0.067/n1/float32/nchw": {"dense": 6.5},
    "sparse_conv2d/nin_conv2a/synapse/0.25/n1/float32/nchw": {"dense": 2.2, "dense_prepacked_other": 1.8},
    "sparse_conv2d/rn_128_28/spatial/0.25/n1/float32/nchw": {"dense": 2.5},
}


def floors_of(row: Row) -> dict[str, float]:
    """Rival → floor for a row of ours; ``"best"`` is the floor against the strongest gated rival, whichever it is.

    ``grouped_mm`` has no kernel of its own yet and is held to a lower floor. A training step is promised
    up to ``TRAINING_DENSITY``; above it the floor is 0.
    """
    if row.op == "grouped_mm":  # torch's own products behind a call of ours: the call is what small products feel
        return {"best": 0.8 if row.provider == "ours" else 0.35}
    promised = row.mode == "fwd" or row.density <= TRAINING_DENSITY * 1.01
    floors = {"best": NEVER_SLOWER if promised else 0.0}
    if row.provider == "ours" and row.mode == "fwd" and row.cache == "hot" and row.threads == 1:
        floors |= GOALS.get(row.case, {})
    return floors
