"""What layers with an index table share: the plan's life.

A plan is derived from the index table alone and is neither state nor parameter. It is a plain attribute: made when the topology is
set, remade when another index tensor is met, and dropped by everything that moves, copies or replaces the table.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.ops.define import note_whole, readable

_compiling = torch.compiler.is_compiling


def _mark(table: Tensor) -> tuple[Tensor, int | None, int]:
    """What tells that a table is still the one it was: itself, its version, where its values are (``.data =`` moves them)."""
    return table, None if table.is_inference() else table._version, table.data_ptr()


def _moved(before: Any, after: Any) -> bool:
    """Whether a table has the values that it had, maybe elsewhere."""
    return after is before or (not before.is_meta and torch.equal(after, before.to(after.device)))


class PlannedModule(nn.Module):
    """A module whose ``index`` buffer (and others of ``_tables``) define a topology.

    Subclasses implement ``_make_plan()`` (from the tables; may raise) and call ``_topology_changed()`` when they set the tables.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    index: Tensor
    _tables: tuple[str, ...] = ("index",)

    def __init__(self) -> None:
        super().__init__()
        self._plan: Tensor | None = None
        self._planned: tuple[tuple[Tensor, int | None, int], ...] = ()  # a mark of each table the plan was made from
        self._seen: tuple | None = None  # their values, kept once a table was written in place, or always where writes leave no trace
        self._topology_set = True

    def _make_plan(self) -> Tensor | None:
        raise NotImplementedError

    def _topology_changed(self) -> None:
        """The tables hold a new topology: plan for it now, so that a first call under torch.compile finds the plan."""
        self._topology_set = True
        self._drop_plan()
        self._current_plan()

    def _drop_plan(self) -> None:
        self.__dict__.update(_plan=None, _planned=(), _seen=None)

    def _current_plan(self) -> Tensor | None:
        """The plan of the tables as they are; None where none can be made (the op then checks and plans by itself)."""
        if _compiling():
            return self._plan if self._planned and self._planned[0][0] is self._buffers["index"] else None
        planned = self._planned
        if planned:
            index, version, place = planned[0]
            unwritten = self._buffers["index"] is index and version is not None and index._version == version and index.data_ptr() == place
            if unwritten and (len(planned) == 1 or self._as_planned(planned)):
                return self._plan
        tables: list[Any] = [self._buffers[name] for name in self._tables]
        if not readable(*tables):
            return None
        if not self._topology_set:
            raise ValueError(
                f"{type(self).__name__}: index must be set after to_empty() (load a state_dict, call reset_parameters or set_topology); "
                "got memory without values"
            )
        written = len(planned) == len(tables) and all(t is p for t, (p, _, _) in zip(tables, planned))
        if written and self._seen is not None and all(map(torch.equal, tables, self._seen)):
            self._planned = tuple(map(_mark, tables))  # as DDP writes at every step: the same values
            return self._plan
        with torch.inference_mode(False):  # what is kept must serve training too
            plan = self._make_plan()
            if plan is not None:
                note_whole(plan)  # a call that is traced may be its first
            unversioned = any(t.is_inference() for t in tables)  # made in inference mode: no counter says when they are written
            self._seen = tuple(t.clone() for t in tables) if written or unversioned else None
        # in one step: another thread's call must not find the plan of one table beside the marks of another
        self.__dict__.update(_plan=plan, _planned=tuple(map(_mark, tables)))
        return plan

    def _as_planned(self, planned: tuple[tuple[Tensor, int | None, int], ...]) -> bool:
        return all(
            self._buffers[name] is t and version is not None and t._version == version and t.data_ptr() == place
            for name, (t, version, place) in zip(self._tables, planned)
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        before = [self._buffers[name] for name in self._tables]
        self._drop_plan()
        super()._apply(fn, recurse)
        if not self.index.is_meta and not all(map(_moved, before, (self._buffers[name] for name in self._tables))):
            self._topology_set = False  # to_empty(): memory without values
        elif self._topology_set and not self.index.is_meta:
            self._current_plan()
        return self

    def __getstate__(self) -> dict:
        state = super().__getstate__() if hasattr(super(), "__getstate__") else self.__dict__
        return {**state, "_plan": None, "_planned": (), "_seen": None}

    def _make_room(self, prefix: str, weight: Tensor, index: Tensor) -> None:
        """A checkpoint holds another number of connections: say so, and take its sizes."""
        warnings.warn(
            f"{prefix or type(self).__name__}: loading an index {list(index.shape)} in place of {list(self.index.shape)}; "
            "weight and index are replaced",
            stacklevel=3,
        )
        self.weight = nn.Parameter(self.weight.new_empty(weight.shape), requires_grad=self.weight.requires_grad)
        self.index = self.index.new_empty(index.shape)

    def _taken(self, table: Tensor) -> Tensor:
        """A table for this layer: on its device, and one that serves training, too, if it was made in inference mode."""
        with torch.inference_mode(False):
            return (table.clone() if table.is_inference() else table).to(self.index.device)

    def _check_tables(self, tables: dict[str, Tensor]) -> None:
        """Raise ValueError for tables, by name, that are none of this layer's."""
        raise NotImplementedError

    def _no_tables(self) -> str | None:
        """What is wrong with a dense weight for this layer, if anything."""
        if self._topology_set and not self.index.is_meta:
            return None
        return f"{type(self).__name__}: index must be set before a dense weight is loaded; got memory without values"

    def _fault_of(self, state_dict: dict, prefix: str) -> str | None:
        """What is wrong with the tables of a state_dict, if anything: to be asked before anything is overwritten."""
        found: dict[str, Any] = {name: state_dict.get(prefix + name) for name in self._tables}
        if not all(isinstance(t, Tensor) for t in found.values()) or not readable(*found.values()):
            return None  # missing entries are torch's to report
        try:
            for name, table in found.items():
                whole = not (table.is_floating_point() or table.is_complex() or table.dtype == torch.bool)
                if not whole or not torch.equal(table.int(), table):  # what does not survive would be another topology
                    raise ValueError(f"{type(self).__name__}: {name} must be 32-bit integers; got {table.dtype}")
            self._check_tables({name: table.int() for name, table in found.items()})
        except ValueError as error:
            return str(error)
        return None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self._drop_plan()
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + "index" in state_dict and not self.index.is_meta:
            self._topology_changed()
