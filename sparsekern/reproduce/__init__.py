"""The papers' tables: their printed cells as data, exact recounts, and measurements beside them."""

from sparsekern.reproduce.counted.cells import Cell, judge
from sparsekern.reproduce.paper import paper_rows, paper_table
from sparsekern.reproduce.tables import TABLES, Arguments, register_table

__all__ = ["TABLES", "Arguments", "Cell", "judge", "paper_rows", "paper_table", "register_table"]
