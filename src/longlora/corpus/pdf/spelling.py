"""Words that a line broke, and letters that a font drew as one."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

_HYPHENS = "-\u00ad\u2010"
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_LAST_PART = re.compile(r"([^\W\d_]+)$")
_FIRST_PART = re.compile(r"^([^\W\d_]+)")
# Ligatures are letters; other characters with a compatible spelling (², ½, ™) mean more than it.
_LIGATURES = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)}
_SPACES = re.compile(r"[\s\u00a0\u2000-\u200b\ufeff]+")
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


class Vocabulary:
    """How often a document writes a word, to tell a hyphen of spelling from one of typesetting."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._counts: Counter[str] = Counter()
        for line in lines:
            words = _WORD.findall(line.casefold())
            # The last word may be the part before a break.
            self._counts.update(words[:-1] if line and line[-1] in _HYPHENS else words)

    def join(self, line: str, following: str) -> str:
        """Join two lines of a paragraph, with a space, with nothing, or with the hyphen that the first one ends in.

        A broken word loses its hyphen unless the document elsewhere writes it with one, and more often than without; or
        unless it goes on with a capital or a number.
        """
        if not line or not following:
            return line + following
        if line[-1] in "—–" and not line[:-1].endswith(" "):
            return line + following
        before, after = _LAST_PART.search(line[:-1]), _FIRST_PART.match(following)
        if line[-1] not in _HYPHENS or not line[-2:-1].isalnum() or not following[0].isalnum():
            return f"{line} {following}"
        if before is None or after is None or not following[0].islower():
            return f"{line[:-1]}-{following}"
        parts = before.group().casefold(), after.group().casefold()
        if self._counts["-".join(parts)] > self._counts["".join(parts)]:
            return f"{line[:-1]}-{following}"
        return line[:-1] + following


def clean(text: str) -> str:
    """Write ligatures as letters and every space as one, and drop what is no character of a text.

    A soft hyphen is seen at the end of a line only.
    """
    if text.endswith("\u00ad"):
        text = text[:-1] + "-"
    # pdfium counts in UTF-16: a letter beyond its first 65,536 comes as two halves.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = unicodedata.normalize("NFC", text.translate(_LIGATURES).replace("\u00ad", "").translate(_CONTROLS))
    return _SPACES.sub(" ", text).strip()
