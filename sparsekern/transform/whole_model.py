"""The whole model: whether it computes with sparse layers what it should, and how fast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparsekern.transform.agree import agree, difference, flat
from sparsekern.transform.convert_report import ConvertReport
from sparsekern.transform.example import Call, Example, layer_by_layer, model_pass, race, undisturbed
from sparsekern.transform.places import Places
from sparsekern.transform.sparse_twins import Swaps, modules
from sparsekern.transform.to_dense import dense_of


def _outputs(holder: nn.Module, example: Example) -> list[Tensor]:
    with undisturbed(holder, training=False), torch.no_grad():
        return flat(example.copied().run(holder))


def _twins(swaps: Swaps) -> dict[nn.Module, nn.Module]:
    """Layer -> the dense layer with zeros where its sparse twin keeps nothing."""
    return {layer: dense_of(made) for layer, (_, made) in swaps.items()}


def _misfit(holder: nn.Module, swaps: Swaps, calls: dict[nn.Module, Call], example: Example, report: ConvertReport) -> str:
    """Why the model does not compute with sparse layers what it computes with their dense twins; empty if it does."""
    dense, sparse = Places(holder, _twins(swaps)), Places(holder, modules(swaps))
    counted: set[nn.Module] = set()
    handles = [made.register_forward_pre_hook(lambda module, _: counted.add(module)) for _, made in swaps.values()]
    try:
        with layer_by_layer():
            dense.put(after=True)
            expected = _outputs(holder, example)
            dense.put(after=False)
            sparse.put(after=True)
            found = _outputs(holder, example)
        for handle in handles:
            handle.remove()
        _outputs(holder, example)  # and as it will be run
    except Exception as error:  # whatever the model does with its layers
        return f"the model fails with it ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    finally:
        for handle in handles:
            handle.remove()
        sparse.put(after=False)
        dense.put(after=False)
    if any(layer in calls and made not in counted for layer, (_, made) in swaps.items()):
        return "the model calls it by another way than its name"
    if not agree(expected, found):
        return f"the model reads it in a way of its own: outputs differ by {difference(expected, found):.1g}"
    if expected:
        report.error = difference(expected, found)
    else:
        report.note = "the model gives no tensors that could be compared"
    return ""


def leave_misfits(holder: nn.Module, swaps: Swaps, calls: dict, example: Example, report: ConvertReport) -> None:
    """Take out of ``swaps`` what the model cannot do with, one by one; and all, where together they do not fit."""
    if not (swaps and _misfit(holder, swaps, calls, example, report)):
        return
    for layer, (entry, made) in list(swaps.items()):
        entry.why_not = _misfit(holder, {layer: (entry, made)}, calls, example, report)
        if entry.why_not:
            del swaps[layer]
    why = _misfit(holder, swaps, calls, example, report) if swaps else ""
    if why:
        _leave_all(swaps, why)
    if not swaps:
        report.error = None


def _leave_all(swaps: Swaps, why: str) -> None:
    for entry, _ in swaps.values():
        entry.why_not = why
    swaps.clear()


def time_whole(holder: nn.Module, swaps: Swaps, example: Example, report: ConvertReport, rounds: int) -> None:
    """The whole model before and after, in turns; all layers stay if it is slower with them."""
    if not swaps:
        return
    places = Places(holder, modules(swaps))
    step = model_pass(holder, example, report.training)

    def at(after: bool) -> Callable[[], object]:
        def run() -> object:
            places.put(after=after)
            return step()

        return run

    device = next((p.device for p in holder.parameters()), torch.device("cpu"))
    try:
        with undisturbed(holder, report.training):
            times, report.verdict = race({"before": at(False), "after": at(True)}, device, rounds)
    except Exception as error:  # a batch-norm of one image, say
        report.note = f"the whole model was not timed ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
        return
    finally:
        places.put(after=False)
    report.times_us = {name: timing.median_us for name, timing in times.items()}
    if report.policy == "if_faster" and report.verdict == "slower":
        for entry, _ in swaps.values():
            entry.why_not = f"faster alone ({entry.measured:.2f}x), but the whole model is not ({report.speedup:.2f}x)"
        swaps.clear()
        report.error = None
