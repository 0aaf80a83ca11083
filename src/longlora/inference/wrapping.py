"""Text for a terminal that ends its lines between words, while it comes piece by piece."""

import re
import shutil
from collections.abc import Callable

from rich.cells import cell_len

_PART = re.compile(r"\n|[ \t]+|[^ \t\n]+")
_TAB = 8


class Wrapping:
    """Writes text so that no word is broken at the terminal's edge; lines that fit are left as they are.

    The last word is held back until it is known to be whole; `finish` writes it. A script without spaces between words
    may end its lines anywhere, and is written at once.
    """

    def __init__(self, write: Callable[[str], object], num_columns: Callable[[], int] | None = None) -> None:
        self._write = write
        self._num_columns = num_columns or (lambda: shutil.get_terminal_size().columns)
        self._column = 0
        self._space = self._word = ""

    def feed(self, text: str) -> None:
        """Take the next piece."""
        for part in _PART.findall(text):
            if part == "\n":
                self.finish()
                self._write("\n")
                self._column = 0
            elif part[0] in " \t":
                self._end_word()
                self._space += part
            else:
                for character in part:
                    self._word += character
                    if cell_len(character) > 1:
                        self._end_word()

    def finish(self) -> None:
        """Write what was held back."""
        self._end_word()
        self._write(self._space)
        self._column = self._after(self._space)
        self._space = ""

    def _end_word(self) -> None:
        if not self._word:
            return
        width = cell_len(self._word)
        if self._column and self._after(self._space) + width > self._num_columns():
            self._write("\n" + self._word)
            self._column = width
        else:
            self._write(self._space + self._word)
            self._column = self._after(self._space) + width
        self._space = self._word = ""

    def _after(self, space: str) -> int:
        """Column behind blanks that begin where the line stands."""
        column = self._column
        for character in space:
            column += _TAB - column % _TAB if character == "\t" else 1
        return column
