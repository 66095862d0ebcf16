"""``sparsekern bench overhead``: what a call of each layer costs, against torch's layer of the same arguments."""

from __future__ import annotations

import argparse

from sparsekern.cli.terms import UsageError, make_console, make_progress, parse_numbers, parse_words


def run_overhead(options: argparse.Namespace) -> int:
    """Time every layer at a size of almost no work, forward without gradient and as a training step."""
    from sparsekern.measure import protocol
    from sparsekern.measure.overhead import MODES, PAIRS, measure_overhead, overhead_table
    from sparsekern.measure.rows import write_rows

    words = options.case.replace(",", " ").split()
    pairs = [pair for pair in PAIRS if all(word in pair.name for word in words)]
    if not pairs:
        raise UsageError(f"bench: --case must match a case of overhead; got {options.case!r} (see --list)")
    modes = parse_words(options.mode) or MODES
    if set(modes) - set(MODES):
        raise UsageError(f"bench: --mode must be of {', '.join(MODES)}; got {options.mode}")
    if options.list:
        print("\n".join(pair.name for pair in pairs))
        return 0
    rows = []
    with make_progress(len(pairs) * len(modes)) as advance:
        for count in parse_numbers("--threads", options.threads, int) or (1,):
            with protocol.threads(count), protocol.pin(options.core if count == 1 else None):
                for pair in pairs:
                    for mode in modes:
                        about = {"rounds": options.rounds, "min_time_ms": options.min_time_ms, "clock": options.clock}
                        rows += measure_overhead(pair, mode, **about)
                        advance(pair.name)
    if not rows:
        raise UsageError("bench: --mode must be fwd for packed layers; got " + options.mode)
    if options.json:
        write_rows(options.json, rows)
    make_console().print(overhead_table(rows))
    return 0
