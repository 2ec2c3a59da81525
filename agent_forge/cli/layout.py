"""Text that fits a terminal: grids whose columns give way, pairs, lines wrapped between words.

A word is never broken. A grid that is too wide first drops the columns that matter least, then
wraps its columns of text, and as a last resort shows each row as lines of its own. Colours are
rich's, so that NO_COLOR, TERM=dumb and pipes get plain text.
"""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

GAP = 2  # columns between two cells
NARROW = 64  # a terminal with fewer columns has a gap of one
LEAST_TEXT = 16  # columns below which a column of text is not worth its place
ID_CHARACTERS = 10


@dataclass(slots=True, kw_only=True)
class Column:
    """A column of a grid.

    spare: columns with the highest number are dropped first; 0 is never dropped. is_text: may be
    wrapped between words.
    """

    head: str
    right: bool = False
    spare: int = 0
    is_text: bool = False


Row = Sequence[str | Text]


@dataclass(slots=True, kw_only=True)
class Grid:
    """Rows under heads, laid out for the width of the console that prints them."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    title: str = ""
    notes: list[str] = field(default_factory=list)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines for a console."""
        yield from self.lines(options.max_width)

    def lines(self, width: int) -> list[Text]:
        """Return the grid as lines of at most `width` columns, unless one word is longer."""
        lines = [Text(line, "bold") for line in wrapped(self.title, width) if self.title]
        if self.rows:
            lines += self._body(width)
        for note in self.notes:
            lines += [Text(line, "dim") for line in wrapped(note, width)]
        return lines

    def _body(self, width: int) -> list[Text]:
        shown = [
            index
            for index, column in enumerate(self.columns)
            if any(str(row[index]) for row in self.rows)
        ]
        gap = GAP if width >= NARROW else 1
        widths = {
            index: max(self._natural(index), cell_len(self.columns[index].head)) for index in shown
        }
        if _total(widths, gap) > width:
            widths = {index: self._natural(index) for index in shown}
        while (extra := _total(widths, gap) - width) > 0:
            texts = [index for index in widths if self.columns[index].is_text]
            widest = max(texts, key=lambda index: widths[index], default=-1)
            if texts and widths[widest] - extra >= self._least(widest):
                widths[widest] -= extra
                continue
            spare = max(widths, key=lambda index: self.columns[index].spare)
            if not self.columns[spare].spare:
                return self._stacked(shown, width)
            del widths[spare]
        return self._laid_out(widths, gap)

    def _cells(self, index: int) -> list[str]:
        return [str(row[index]) for row in self.rows]

    def _natural(self, index: int) -> int:
        """Return the width of a column whose cells stand in one line; its head may be wrapped."""
        return max(map(cell_len, [*self.columns[index].head.split(), *self._cells(index)]))

    def _least(self, index: int) -> int:
        """Return the width of a column of text that breaks no word of it."""
        longest = max(cell_len(word) for cell in self._cells(index) for word in cell.split())
        return max(longest, cell_len(self.columns[index].head), LEAST_TEXT)

    def _laid_out(self, widths: dict[int, int], gap: int) -> list[Text]:
        heads = [Text(self.columns[index].head, "dim") for index in widths]
        lines = _row(heads, self._places(widths), gap)
        for row in self.rows:
            cells = [_as_text(row[index]) for index in widths]
            lines += _row(cells, self._places(widths), gap)
        return lines

    def _places(self, widths: dict[int, int]) -> list[tuple[int, bool]]:
        return [(size, self.columns[index].right) for index, size in widths.items()]

    def _stacked(self, shown: list[int], width: int) -> list[Text]:
        """Return each row as lines of its own: its first cell, and the others as pairs below."""
        first, *others = shown
        lines: list[Text] = []
        for row in self.rows:
            name = str(row[first])
            name = f"{self.columns[first].head} {name}" if name.isdecimal() else name
            lines += [Text(line, "bold") for line in wrapped(name, width)]
            filled = [(self.columns[i].head, row[i]) for i in others if str(row[i])]
            lines += pairs(filled, width)
        return lines


def _total(widths: dict[int, int], gap: int) -> int:
    return sum(widths.values()) + gap * (len(widths) - 1)


def _row(cells: Sequence[Text], places: Sequence[tuple[int, bool]], gap: int) -> list[Text]:
    """Return a row as one line, or several where a cell of text is wrapped."""
    parts = [wrapped(str(cell), size) for cell, (size, _) in zip(cells, places, strict=True)]
    lines = []
    for number in range(max(map(len, parts))):
        line = Text()
        for cell, part, (size, right) in zip(cells, parts, places, strict=True):
            text = part[number] if number < len(part) else ""
            padding = " " * (size - cell_len(text))
            line.append(padding if right else "").append(text, cell.style)
            line.append(("" if right else padding) + " " * gap)
        line.rstrip()
        lines.append(line)
    return lines


def _as_text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


def pairs(entries: Sequence[tuple[str, str | Text]], width: int) -> list[Text]:
    """Return (label, text) entries with the texts below each other, wrapped between words."""
    if not entries:
        return []
    room = max(cell_len(label) for label, _ in entries) + 2 * GAP
    lines = []
    for label, text in entries:
        for number, part in enumerate(wrapped(str(text), max(width - room, LEAST_TEXT))):
            line = Text(" " * GAP)
            line.append((label if number == 0 else "").ljust(room - GAP), "dim")
            line.append(part, text.style if isinstance(text, Text) else "")
            lines.append(line)
    return lines


def wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    """Return text in lines of at most `width` columns, broken between words only.

    Spaces that the text begins with stand before every line. indent: further ones, before every
    line but the first.
    """
    lines: list[str] = []
    line = start = text[: len(text) - len(text.lstrip(" "))]
    for word in text.split():
        longer = f"{line} {word}" if line.strip() else line + word
        if line.strip() and cell_len(longer) > width:
            lines.append(line)
            line = start + " " * indent + word
        else:
            line = longer
    return [*lines, line]


def command(line: str, width: int, indent: int = 2) -> list[str]:
    """Return a shell command in lines that can be copied: broken lines end with a backslash."""
    lines, start = [], " " * indent
    current = start
    for word in _options_with_values([shlex.quote(word) for word in shlex.split(line)]):
        longer = f"{current} {word}" if current.strip() else current + word
        if current.strip() and cell_len(longer) > width - 2:
            lines.append(f"{current} \\")
            current = 2 * start + word
        else:
            current = longer
    return [*lines, current]


def _options_with_values(words: list[str]) -> list[str]:
    """Return the words with each option and its value as one."""
    joined: list[str] = []
    for word in words:
        last = joined[-1] if joined else ""
        waits = last.startswith("-") and " " not in last  # an option without its value so far
        if waits and word[0] != "-":
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return joined


def short_id(identity: str) -> str:
    """Return an id as tables and lines show it; every command takes paths, so it is not typed."""
    return identity[:ID_CHARACTERS]


def shared_folder(paths: Sequence[str]) -> str:
    """Return the folder that all paths lie in, with its slash; "" for none, and for one path."""
    folders = {os.path.dirname(path) for path in paths}
    if len(paths) < 2 or len({os.path.isabs(path) for path in paths}) > 1 or "" in folders:
        return ""
    shared = os.path.commonpath(sorted(folders))
    return f"{shared}/" if shared.strip("/") else ""
