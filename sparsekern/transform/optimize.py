"""optimize: a trained model, made ready for inference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_structure

from sparsekern.arguments import check_flag, check_whole, said
from sparsekern.transform.agree import agree, difference, flat
from sparsekern.transform.carry import duplicate
from sparsekern.transform.chain import RootChain
from sparsekern.transform.convert_report import ConvertReport
from sparsekern.transform.graph import copied
from sparsekern.transform.held import arguments_of, hold
from sparsekern.transform.race import race
from sparsekern.transform.report import OptimizeReport
from sparsekern.transform.sequence import Sequence2d
from sparsekern.transform.trial import other_batch
from sparsekern.transform.ways import PACKED, Contiguous, attempt, packed_names, ways


def optimize(
    model: nn.Module,
    *example: Any,
    pack: bool = True,
    pool: bool = True,
    rounds: int = 5,
    progress: Callable[[str], object] | None = None,
) -> nn.Module:
    """A frozen copy of ``model`` for inference that computes the same, faster; ``.report`` says what was done and what it brought.

    Folds batch-norms into the layers before them, lets convolutions add the shortcut and apply
    the ReLU behind them, drops what inference does not need, pools with kernels of our own, packs weights, computes a convolution and
    the 1x1 convolutions behind it in one call where that is faster, lets convolutions whose results are joined write them where they
    belong, and keeps one layout from end to end: the copy is timed with NCHW
    activations, with channels_last ones, with those and packed convolutions, and, for a batch, with the convolutions a few images at a
    time, against the model as it came, and the fastest is returned.

    Args:
        model: any module. Where ``torch.fx`` cannot trace it, its layers are packed where they stand and the report says why no more
            was done. It is not changed.
        example: inputs to trace, compare and time with; use the batch that you will run. Other batches stay correct: a way that gives
            another result for a second batch, of 2 images (or 3), is left out; where the model takes none, the report says so. What is
            left out, None, a truth or a word stays as it is here: a graph of the model refuses calls with another.
        pack: whether weights are packed; packed layers cost memory and do not see later writes.
        pool: whether poolings run on our kernel.
        rounds: of interleaved timing; of calls longer than 20 ms only those that may win are timed again, and fewer of very long ones.
        progress: called with what is being done, in a few words.

    Returns:
        A module in eval mode without gradients, with the input and output layouts of the model, and ``report``, an
        :class:`OptimizeReport`; under the name ``optimize_report`` where the model has a ``report`` of its own.

    Raises:
        ValueError: ``optimize: model must compute the same twice; got outputs that differ by 0.3`` for a model that is random or keeps
            state in eval mode; ``optimize: rounds must be at least 1; got 0``; later, from the copy:
            ``optimize: mask must be None, as in the example; got Tensor [2, 8]``

    Cost:
        A second to a minute, most of it for timing: about 30 calls of the model. Each candidate is a copy of the model's
        memory while it runs.

    Source:
        What Deep Roots (Ioannou et al.), section 6, leaves to the implementation: time from fewer FLOPs.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        >>> fast = optimize(model, torch.randn(1, 8, 14, 14))
        >>> fast.report.folded, fast.report.fused
        (['1'], ['0'])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"optimize: model must be an nn.Module; got {type(model).__name__}")
    check_flag("optimize", pack=pack, pool=pool)
    check_whole("optimize", rounds=rounds)
    if rounds < 1:
        raise ValueError(f"optimize: rounds must be at least 1; got {rounds}")
    if progress is not None and (not callable(progress) or isinstance(progress, type)):
        raise ValueError(f"optimize: progress must be None or a function of a string; got {said(progress)}")
    taken = hasattr(model, "report") and not isinstance(model.report, OptimizeReport | ConvertReport)
    model = duplicate(model).eval().requires_grad_(False)
    devices = [torch.cuda.current_device()] if any(p.is_cuda for p in model.parameters()) else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        best, report = _fastest(model, example, pack, pool, rounds, progress or (lambda doing: None))
    return _with_report(best, "optimize_report" if taken else "report", report)


def _fastest(
    model: nn.Module, example: tuple, pack: bool, pool: bool, rounds: int, progress: Callable[[str], object]
) -> tuple[nn.Module, OptimizeReport]:
    """The way that is returned, and what came of all of them."""
    report = OptimizeReport()
    progress("running the model")
    given = copied(example)
    expected = flat(model(*given))
    again = flat(model(*copied(example)))
    if not agree(expected, again):
        raise ValueError(f"optimize: model must compute the same twice; got outputs that differ by {difference(expected, again):.1g}")
    trials = [(example, expected), *_second_trial(model, example, report)]
    ready = {"model": model}
    for name, make in ways(model, example, trials[-1][0], pack, pool, report):
        progress(f"trying {name}")
        way = attempt(report, name, make)
        if way is not None and _agrees(way.eval().requires_grad_(False), name, trials, report):
            ready[name] = way
    report.times_us = _times(ready, example, _changed(given, example), rounds, progress)
    report.chosen = min(report.times_us, key=report.times_us.__getitem__)
    best: Any = ready[report.chosen]
    report.packed += packed_names(best)
    report.chains = {chain.names: chain.gain for chain in best.modules() if isinstance(chain, RootChain)}
    report.left = {what: why for what, why in report.left.items() if tuple(what.split(" + ")) not in report.chains}
    report.densified = report.densified if report.chosen.startswith(PACKED) else []
    report.sequences = [m.names for m in best.modules() if isinstance(m, Sequence2d)]
    if report.chosen not in ("model", "packed"):
        graph: Any = best.model if isinstance(best, Contiguous) else best
        hold(graph, arguments_of(model, example))
    report.error = difference(expected, flat(best(*copied(example))))
    return best, report


def _with_report(best: nn.Module, name: str, report: OptimizeReport) -> nn.Module:
    setattr(best, name, report)
    if isinstance(best, fx.GraphModule):
        best.meta.setdefault("_user_preserved_attributes", {})[name] = report  # its deep copies forget all others
    return best


def _changed(given: tuple, example: tuple) -> bool:
    """Whether a model that was given a copy of the example has written into it."""
    return tree_structure(given) != tree_structure(example) or difference(flat(example), flat(given)) > 0


def _times(ready: dict[str, nn.Module], example: tuple, written: bool, rounds: int, progress: Callable[[str], object]) -> dict[str, float]:
    """Microseconds of each way, each call on a fresh copy where the model writes into its inputs."""
    inputs = copied(example)
    if not written:
        return race({name: partial(way, *inputs) for name, way in ready.items()}, rounds, progress)
    fresh = list(inputs)

    def refill() -> None:
        fresh[:] = copied(example)

    def call(way: nn.Module) -> object:
        return way(*fresh)

    return race({name: partial(call, way) for name, way in ready.items()}, rounds, progress, before_each=refill)


def _second_trial(model: nn.Module, example: tuple, report: OptimizeReport) -> list[tuple[tuple, list[Tensor]]]:
    """Inputs of another batch and what the model gives for them; empty, and in the report, where it takes no other."""
    try:
        other = other_batch(example)
        if other is not None:
            return [(other, flat(model(*copied(other))))]
        report.left["a second batch"] = "no input has one: only the example is compared"
    except Exception as error:  # whatever it says: it has to run on the example alone
        said = str(error).strip().partition("\n")[0]
        report.left["a second batch"] = f"the model takes none, so only the example is compared: {type(error).__name__}: {said}"
    return []


def _outputs(model: nn.Module, inputs: tuple) -> list[Tensor]:
    return flat(model(*copied(inputs)))


def _agrees(way: nn.Module, name: str, trials: list[tuple[tuple, list[Tensor]]], report: OptimizeReport) -> bool:
    """Whether a way gives what the model gives, on each of the trials; else the report says why not."""
    for inputs, expected in trials:
        batch = "" if inputs is trials[0][0] else " for another batch"
        found = attempt(report, name, partial(_outputs, way, inputs), f"fails{batch}")
        if found is None:
            return False
        if not agree(expected, found):
            report.left[name] = f"differs from the model by {difference(expected, found):.1g}{batch}"
            return False
    return True
