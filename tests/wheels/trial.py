"""Run in an environment that holds torch, the wheel and pytest: every op and every layer, and what serves them, as one line of JSON.

`python trial.py FOLDER`, where FOLDER holds the contract test (tests/ops); the compiler is out of reach.
"""

from __future__ import annotations

import contextlib
import io
import json
import platform
import sys
import time


def held_to_contract(folder: str) -> int:
    """Values and gradients of every sample of every op against float64, within derived bounds: how many."""
    sys.path.insert(0, folder)
    import test_contract as contract
    import torch

    best = contract.backends.providers()[-1]
    cases = [(provider, torch.float32) for provider in contract.PROVIDERS] + [(f"{best} never", torch.bfloat16), (best, torch.float32)]
    for provider, dtype in cases:
        for op, name in contract.SAMPLES:
            contract.hold_to_contract(op, name, dtype, lambda serving=provider: contract.use(serving))
    return len(cases) * len(contract.SAMPLES)


def command(*words: str) -> str:
    """What a command prints; an error where it fails."""
    from sparsekern.cli.program import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(list(words))
    if code:
        raise SystemExit(f"sparsekern {' '.join(words)} ended with {code}:\n{printed.getvalue()[-3000:]}")
    return printed.getvalue()


def main() -> None:
    started = time.monotonic()
    import torch

    import sparsekern
    from sparsekern.ops import OPS, backends

    assert "site-packages" in sparsekern.__file__ and backends.missing is None, backends.missing
    assert backends.native is not None and backends.native.__file__.endswith("_native.abi3.so")
    served = {backends.serves(op) for op in OPS}
    assert "cpu/" in command("env") and all(who.startswith(("cpu/", "torch")) or who == "reference" for who in served), served
    found = {"python": platform.python_version(), "torch": torch.__version__, "sparsekern": sparsekern.__version__}
    found |= {"quick": backends.quick_call is not None, "cases": held_to_contract(sys.argv[1])}
    probed = command("probe").strip().splitlines()[-1]
    print(json.dumps({**found, "probe": probed, "seconds": round(time.monotonic() - started)}))


if __name__ == "__main__":
    main()
