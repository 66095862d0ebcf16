"""The words that go with a timed table: the same under the table, under the plot and in the JSON file."""

from __future__ import annotations

from sparsekern.reproduce.timed.rounds import QUIET
from sparsekern.reproduce.timed.runner import Result

LEFT_TO = {"torch": "torch's own ways", "reference": "the reference"}


def notes(result: Result) -> list[str]:
    """How to read the columns."""
    role = result.table.sparse_role
    found = [
        "speedup: times faster than the best dense, network against network; in (brackets) where the p20..p80 intervals overlap: no winner."
    ]
    if any(not row.of.is_dense for row in result.rows):
        found += [
            f"torch {role} speedup: also against the best dense. like for like: ours against the dense twin with our "
            "layers. (Side by side: of the whole model.)",
            f"{role} layers' share: of the whole model's time, ours, measured layer by layer in the running model.",
        ]
    return found


def caption(result: Result) -> list[str]:
    """What the numbers mean and depend on."""
    card = result.machine
    rounds = sorted({row.rounds for row in result.rows})
    titles = (
        ("Best dense", "dense"),
        (f"Best torch {result.table.sparse_role}", result.table.sparse_role),
        ("Ours", "ours"),
    )
    winners = [f"{title}: {_winners(result, role)}" for title, role in titles if _winners(result, role)]
    twin = "A variant and its dense twin are different functions of equal shape: the accuracy is the paper's column. "
    return [
        f"{twin if any(not row.of.is_dense for row in result.rows) else ''}Weights are untrained; batch-norm is folded.",
        f"{'. '.join(winners)}. {_served(result)}Poolings and dense linear layers: the fastest for the layout, for all alike.",
        f"Before timing, every layer and output was within its float32 bound of the float64 result. Input: {result.images}. "
        f"Batches: {result.table.batch_note}.",
        f"{card.get('cpu')}, {plural(result.threads, 'thread')}, kernels {card.get('isa') or 'n/a'}, "
        f"malloc {card.get('allocator')}, float32, batch {result.batch}, median of "
        f"{'..'.join(str(n) for n in dict.fromkeys((rounds[0], rounds[-1])))} interleaved rounds, "
        f"torch {card.get('torch')}, sparsekern {card.get('sparsekern') or 'source tree'}.",
        *_left_out(result),
        *_busy(result),
    ]


def plural(n: int, word: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{n} {word}{'s' * (n != 1)}"


def _left_out(result: Result) -> list[str]:
    names = sorted({key[2] for row in result.rows for key in row.left_out})
    if not names:
        return []
    return [
        f"Timed once and left out of the rounds where that showed them well behind their role's fastest: {', '.join(names)} "
        "(which rows: in the numbers' file)."
    ]


def _busy(result: Result) -> list[str]:
    if result.share >= QUIET or result.threads > 1:
        return []
    return [
        f"The machine was busy: the measuring thread ran {result.share:.0%} of the time. Times are its CPU time, not "
        "the wall's, and less sure than on a quiet machine."
    ]


def _served(result: Result) -> str:
    """Which layers of our fastest nets run torch's kernels inside our layers, or no compiled kernel at all."""
    by_others: dict[str, dict[str, None]] = {}  # an ordered set: layers of the rows' nets, first seen first
    for row in result.rows:
        for layer, who in row.served.get(row.competitor("model", "ours") or "", {}).items():
            if not who.startswith("sparsekern"):
                server = "torch" if who.startswith("torch") else "reference"
                by_others.setdefault(server, {})[layer] = None
    return "".join(f"Our layers left {_some(list(layers))} to {LEFT_TO[who]}. " for who, layers in by_others.items())


def _some(layers: list[str], most: int = 9) -> str:
    rest = f" and {len(layers) - most} more" if len(layers) > most + 1 else ""
    return ", ".join(layers[:most] if rest else layers) + rest


def _winners(result: Result, role: str) -> str:
    """Which competitor was fastest for whole models, and in how many rows: ``sparsekern NCHW (13 of 13)``."""
    names = [name for row in result.rows if (name := row.competitor("model", role))]
    return ", ".join(f"{name} ({names.count(name)} of {len(names)})" for name in dict.fromkeys(sorted(names)))
