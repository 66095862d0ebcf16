"""Judged cells for people: one line per row of the paper's table, printed and recomputed side by side, reasons as notes below."""

from __future__ import annotations

import textwrap
from fractions import Fraction
from typing import TYPE_CHECKING

from sparsekern.reproduce.counted.cells import SUFFIXES, Cell, Value, parse_printed

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

STYLES = {"exact": "green", "realisation of a random mask": "green", "printed": "dim", "not printed": "dim"}  # others: yellow
SILENT = ("exact", "printed", "not printed")  # not worth a word in the last column
SHORT = {"realisation of a random mask": "random mask"}
SUMMARY = {  # head of a column of the summary to the kinds of status it counts
    "exact": ("exact",),
    "off by": ("off by ...", "within 0.5 %"),
    "misprint": ("misprint", "misworded"),
    "random\nmask": ("realisation of a random mask",),
    "not re-\nproduced": ("not reproduced",),
    "printed\nonly": ("printed",),
    "not\nprinted": ("not printed",),
}


class Notes:
    """Numbers the distinct reasons in the order of their first cell."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, cell: Cell) -> str:
        """A superscript number, or nothing for a cell that speaks for itself."""
        if not cell.reason and (cell.status in SILENT or cell.status.startswith("off by")):
            return ""
        text = ": ".join(filter(None, (cell.status, cell.reason)))
        return _raised(self._numbers.setdefault(text, len(self._numbers) + 1))

    def lines(self) -> list[str]:
        return [f"{_raised(number)} {text}" for text, number in self._numbers.items()]


def cells_table(data: dict, cells: list[Cell], width: int = 120) -> list[RenderableType]:
    """The table, the claims of the text, the notes, and any cell that is not as expected.

    Args:
        data: of the table: title, rule, columns.
        cells: all of them, claims included.
        width: of the terminal; printed and recomputed numbers stand in two lines where one is too long.
    """
    from rich.text import Text

    notes, ids = Notes(), {row["id"] for row in data["rows"]}
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.id.rpartition("/")[0] in ids:
            rows.setdefault(cell.id.rpartition("/")[0], []).append(cell)
    claims = [cell for cell in cells if cell.id.rpartition("/")[0] not in ids]
    grid = _Grid(data, list(rows.values()), notes, width)
    parts: list[RenderableType] = [grid.table()]
    if claims:
        parts.append(_claims_table(claims, notes))
    words = [*notes.lines(), *grid.missing(), f"Rule: {data['rule']}"]
    parts += [Text("\n".join(_folded(line, width) for line in words), style="dim"), ""]
    wrong = [_complaint(cell) for cell in cells if not cell.ok]
    if wrong:
        parts.append(Text("\n".join(wrong), style="bold red"))
    return parts


def summary_table(found: dict[str, list[Cell]], seconds: dict[str, float]) -> RenderableType:
    """One line per table: how many cells of each status."""
    table = _plain_table("All tables: cells by status")
    for head in ("table", "cells", *SUMMARY, "un-\nexpected", "seconds"):
        table.add_column(head, justify="left" if head == "table" else "right", no_wrap=True)

    def add(name: str, cells: list[Cell], took: float) -> None:
        counts = (sum(cell.kind in kinds for cell in cells) for kinds in SUMMARY.values())
        wrong = sum(not cell.ok for cell in cells)
        alarm = f"[bold red]{wrong}[/]" if wrong else "–"
        table.add_row(name, str(len(cells)), *(str(n or "–") for n in counts), alarm, f"{took:.1f}")

    for name, cells in found.items():
        add(name, cells, seconds[name])
    table.add_section()
    add("all", [cell for cells in found.values() for cell in cells], sum(seconds.values()))
    return table


def show_value(value: Value | None) -> str:
    """A recomputed number: integers in full, others to five digits.

    Example:
        >>> show_value(222487946), show_value(Fraction(959104, 82288)), show_value((Fraction(1, 2), 8)), show_value(None)
        ('222,487,946', '11.655', '0.5,8', '')
    """
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(str(v) if isinstance(v, int) else show_value(v) for v in value)
    if isinstance(value, float | Fraction) and value != int(value):
        return f"{float(value):.5g}"
    return f"{int(value):,}"


class _Grid:
    """The paper's table, a column per printed column, in the first of four layouts that fits: ``printed  recomputed`` side by side;
    without the columns that cannot be recomputed; printed over recomputed; and that with recomputed numbers in the printed unit."""

    def __init__(self, data: dict, rows: list[list[Cell]], notes: Notes, width: int):
        self.data = data
        self.titles = list(data["columns"].values())
        self.places = [{cell.column: cell for cell in row} for row in rows]
        self.marks = {cell.id: notes.mark(cell) for row in rows for cell in row}
        self.counted = [t for t in self.titles if any(t in p and p[t].recomputed is not None for p in self.places)]
        layouts = ((self.titles, False, False), (self.counted, False, False), (self.counted, True, False), (self.counted, True, True))
        for self.shown, self.stacked, self.short in layouts:
            if self._needs() <= width:
                break

    def table(self) -> RenderableType:
        from rich.text import Text

        table = _plain_table(f"{self.data['table']}: printed {'over' if self.stacked else 'and'} recomputed cells")
        table.add_column("", no_wrap=True)
        for title in self.shown:
            table.add_column(_wrapped(title, self._width(title)), justify="right", no_wrap=True)
        table.add_column("status", no_wrap=True)
        for place in self.places:
            texts = []
            for title in self.shown:
                cell = place.get(title)
                texts.append(Text(self._text(title, cell), style=_style(cell) if cell else "", justify="right"))
            table.add_row(self._label(place), *texts, self._status(place))
        return table

    def missing(self) -> list[str]:
        left_out = [title for title in self.titles if title not in self.shown]
        return [f"Printed only, not shown: {', '.join(left_out)}."] if left_out else []

    def _text(self, title: str, cell: Cell | None) -> str:
        if cell is None:
            return ""
        printed, mark = cell.printed or "", self.marks[cell.id]
        if title not in self.counted:
            return printed + mark
        if self.stacked:
            return f"{printed}\n{self._value(cell)}{mark}"
        column = [p[title] for p in self.places if title in p]
        marks = max(len(self.marks[c.id]) for c in column)
        values = max(len(self._value(c)) for c in column)
        marked = f"{self._value(cell):>{values}}{mark:<{marks}}"
        return f"{printed}  {marked}" if printed else marked

    def _value(self, cell: Cell) -> str:
        return in_printed_unit(cell) if self.short else show_value(cell.recomputed)

    def _width(self, title: str) -> int:
        lines = (line for p in self.places for line in self._text(title, p.get(title)).splitlines())
        return max([*map(len, title.split()), *map(len, lines)])

    def _needs(self) -> int:
        lines = [(self._label(p), self._status(p).plain) for p in self.places]
        sides = (max(len(line) for texts in lines for line in texts[i].splitlines()) for i in (0, 1))
        return sum(sides) + 4 + sum(self._width(title) + 2 for title in self.shown)

    def _label(self, place: dict[str, Cell]) -> str:
        label = next(iter(place.values())).row
        return label.replace(" (", "\n(") if self.stacked else label

    def _status(self, place: dict[str, Cell]) -> Text:
        from rich.text import Text

        if any(not cell.ok for cell in place.values()):
            return Text("UNEXPECTED", style="bold red")
        told = list(dict.fromkeys(cell.status for cell in place.values() if cell.status not in SILENT))
        words = [SHORT.get(status, status) for status in told]
        style = "green" if all(STYLES.get(status) == "green" for status in told) else "yellow"
        return Text(("\n" if self.stacked else ", ").join(words) or "exact", style=style)


def in_printed_unit(cell: Cell) -> str:
    """The recomputed number in the unit that is printed, to five digits: 12,269,063,808 beside "12270 M" is "12269M"."""
    if cell.printed and isinstance(cell.recomputed, int):
        suffix = parse_printed(cell.printed).suffix
        if suffix in ("K", "M", "B"):
            return f"{cell.recomputed / SUFFIXES[suffix]:.5g}{suffix}"
    return show_value(cell.recomputed)


def _style(cell: Cell) -> str:
    style = STYLES.get(cell.status, "yellow") if cell.ok else "bold red"
    return "" if style == "green" else style


def _raised(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _claims_table(claims: list[Cell], notes: Notes) -> RenderableType:
    from rich.text import Text

    table = _plain_table("Other tables, and numbers of the text")
    for head in ("", "", "printed", "recomputed", "status", "where"):
        table.add_column(head, justify="right" if head in ("printed", "recomputed") else "left", overflow="fold")
    for cell in claims:
        marked = f"{show_value(cell.recomputed)}{notes.mark(cell)}"
        table.add_row(cell.row, cell.column, cell.printed or "", marked, Text(cell.status, style=_style(cell) or "green"), cell.where)
    return table


def _complaint(cell: Cell) -> str:
    wanted = f", {show_value(cell.known)}" if cell.known is not None else ""
    return f"UNEXPECTED {cell.id}: expected {cell.expected}{wanted}; got {cell.status}, {show_value(cell.recomputed) or 'nothing'}"


def _plain_table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _wrapped(title: str, width: int) -> str:
    return "\n".join(textwrap.wrap(title, width, break_long_words=False))


def _folded(line: str, width: int) -> str:
    return textwrap.fill(line, width, subsequent_indent="    ", break_long_words=False)
