"""Extract text from web pages, e-books, Markdown and plain files."""

import lzma
import posixpath
import re
import unicodedata
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote

from longlora.errors import DataError

_BLOCKS = "p h1 h2 h3 h4 h5 h6 dt dd blockquote figcaption caption div section article tr hr td th ul ol dl main body"
# Noncharacters, which occur in no text: the end of a paragraph, and the beginning and end of verbatim text.
_BOUNDARY, _VERBATIM, _RUNNING = "\ufdd0", "\ufdd1", "\ufdd2"
# Written before and after an element's content.
_MARKS = {
    **dict.fromkeys(_BLOCKS.split(), (_BOUNDARY, _BOUNDARY)),
    "li": (f"{_BOUNDARY}- ", _BOUNDARY),
    "pre": (_BOUNDARY + _VERBATIM, _RUNNING + _BOUNDARY),
    "br": ("\v", ""),
}
# The parts of a page that are not its text.
_NO_TEXT = "script style noscript template svg nav header footer aside form button iframe object head".split()
_NO_TEXT_OF_A_BOOK = [name for name in _NO_TEXT if name not in ("header", "footer", "aside")] + ["rt", "rp", "rtc"]
_NOTES = re.compile(r"\b(footnote|endnote|rearnote)\b")
# Invisible characters that mark where a word may break; not the joiners, which change how letters are written.
_INVISIBLE = dict.fromkeys((0x00AD, 0x200B, 0x2060, 0xFEFF))
_LAYOUT = ["table", "h1", "h2", "h3"]
_NOTE_TYPES = re.compile(r"\b(noteref|pagebreak)\b")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_ENCRYPTION = "META-INF/encryption.xml"
# A book that is not protected may still have obfuscated fonts.
_FONT_ALGORITHMS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")


_MIB = 2**20
# Far above any text written by people, yet readable within a minute and a few GiB of memory.
MOST_TEXT_BYTES = 256 * _MIB  # of a plain file
MOST_PAGE_BYTES = 16 * _MIB  # of an HTML page, whose tree takes thirty times as much memory
MOST_BOOK_BYTES = 64 * _MIB  # of all parts of an e-book, unpacked
_MOST_COMPARISONS = 10**10  # characters compared to find a page's main part


@dataclass(frozen=True, kw_only=True)
class MarkedText:
    """A text with its own title and the number of its parts."""

    text: str
    title: str
    num_parts: int = 1
    notes: tuple[str, ...] = ()  # what a reader should know: pages without text, what was left out
    has_references: bool = False  # the file has a list of references, which the text may leave out


def read_html(path: Path) -> MarkedText:
    """Read a web page: the paragraphs, headings and list items of its main part, as trafilatura identifies it.

    Raises:
        DataError: it is not text.
    """
    with path.open("rb") as file:
        content = read_bounded(file, MOST_PAGE_BYTES, "the page")
    if b"\0" in content and content[:2] not in _UTF16_MARKS:
        raise DataError("not text: it contains NUL characters")
    soup, has_formulas = _parsed(content)
    page = str(soup) if has_formulas else content  # before the text is taken out of the soup
    title, paragraphs = _page_text(soup)
    return MarkedText(text="\n\n".join(_main_part(page, paragraphs)), title=title)


def read_bounded(file: IO[bytes], most: int, what: str) -> bytes:
    """Read the rest of a file.

    Raises:
        DataError: there are more than `most` bytes.
    """
    content = file.read(most + 1)
    if len(content) > most:
        raise DataError(f"too large: {what} has more than {most // _MIB} MiB; split it")
    return content


def _main_part(page: str | bytes, paragraphs: list[str]) -> list[str]:
    """Drop what trafilatura leaves out, unless it keeps less than half: it is made for long pages."""
    import trafilatura

    try:
        kept = _letters(trafilatura.extract(page, favor_recall=True, include_comments=False) or "")
    except RecursionError:  # a page may be nested deeper than Python's limit
        return paragraphs
    if len(paragraphs) * len(kept) > _MOST_COMPARISONS:
        return paragraphs
    main = [paragraph for paragraph in paragraphs if paragraph.startswith("[") or _letters(paragraph) in kept]
    return main if 2 * sum(map(len, main)) > sum(map(len, paragraphs)) else paragraphs


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


def read_epub(path: Path) -> MarkedText:
    """Read an e-book: the parts of its spine, in order.

    Raises:
        DataError: it is not a zip file, contains no book, or is protected or too large.
    """
    from lxml import etree

    try:
        with zipfile.ZipFile(path) as archive:
            package = _package_path(archive)
            root = _xml(archive, package)
            stored = set(archive.namelist())
            spine = _spine(root, PurePosixPath(package).parent, stored)
            _check_unprotected(archive, spine)
            missing = [name for name in spine if name not in stored]
            parts = [_page_text(_parsed(content)[0], is_book=True)[1] for content in _parts(archive, spine)]
            texts = ["\n\n".join(part) for part in parts]
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"damaged: not a complete e-book ({str(error).strip(chr(39))})") from error
    except (etree.XMLSyntaxError, RuntimeError, ValueError) as error:  # RuntimeError: the zip file has a password
        raise DataError(f"damaged or protected ({error})") from error
    title = root.findtext(".//{http://purl.org/dc/elements/1.1/}title") or ""
    texts = [text for text in texts if text]
    notes = (f"parts that the book lists but does not contain: {', '.join(missing)}",) if missing else ()
    return MarkedText(text="\n\n".join(texts), title=" ".join(title.split()), num_parts=len(texts), notes=notes)


def _unpacked(archive: zipfile.ZipFile, name: str) -> bytes:
    """Unpack a part of an e-book without trusting the size that it declares."""
    with archive.open(name) as part:
        return read_bounded(part, MOST_PAGE_BYTES, name)


def _parts(archive: zipfile.ZipFile, spine: list[str]) -> Iterator[bytes]:
    left = MOST_BOOK_BYTES
    for name in dict.fromkeys(spine):
        if name in archive.NameToInfo:
            content = _unpacked(archive, name)
            left -= len(content)
            if left < 0:
                raise DataError(f"too large: its parts have more than {MOST_BOOK_BYTES // _MIB} MiB together; split it")
            yield content


def read_markdown(path: Path) -> MarkedText:
    """Read Markdown as it is, without its front matter; the first heading is the title.

    Raises:
        DataError: it is not UTF-8.
    """
    text = re.sub(r"\A---\n.*?\n(---|\.\.\.)\n", "", _decoded(path), flags=re.DOTALL)
    heading = re.search(r"^#{1,6}\s+(.+?)\s*#*$", text, re.MULTILINE)
    return MarkedText(text=text.strip(), title=heading.group(1) if heading else "")


def read_plain(path: Path) -> MarkedText:
    """Read a plain text as it is, without reflowing lines.

    Raises:
        DataError: it is not UTF-8.
    """
    return MarkedText(text=_decoded(path).strip(), title="")


def _decoded(path: Path) -> str:
    with path.open("rb") as file:
        content = read_bounded(file, MOST_TEXT_BYTES, "the text")
    encoding = "utf-16" if content[:2] in _UTF16_MARKS else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError("not UTF-8 text; convert it, for instance with iconv") from error
    if "\0" in text:
        raise DataError("not text: it contains NUL characters")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _parsed(content: bytes) -> tuple[Any, bool]:
    """Parse HTML or XHTML, with formulas as TeX where it is given, else as text; and return whether it has any."""
    from bs4 import BeautifulSoup

    try:
        content.decode("utf-8")
        encoding = "utf-8"
    except UnicodeDecodeError:
        encoding = None  # the page may declare it
    soup: Any = BeautifulSoup(content, "lxml", from_encoding=encoding)
    formulas = soup.find_all("math")
    for formula in formulas:
        source = formula.find("annotation", attrs={"encoding": "application/x-tex"})
        tex = (source.get_text() if source else formula.get("alttext", "")).strip()
        for annotation in formula.find_all(["annotation", "annotation-xml"]):
            annotation.extract()
        begin, end = ("\\[", "\\]") if formula.get("display") == "block" else ("\\(", "\\)")
        formula.replace_with(f"{begin}{tex}{end}" if tex else formula.get_text())
    return soup, bool(formulas)


def _page_text(soup: Any, *, is_book: bool = False) -> tuple[str, list[str]]:
    """Return the title and all paragraphs of a parsed page; this modifies the tree."""
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    for name in ("epub:type", "role"):
        for note in soup.find_all(attrs={name: _NOTES}):
            if note.find(attrs={name: _NOTES}) is None:  # a single note, not the list of notes
                _replace(soup, note, f"[Footnote: {' '.join(note.get_text(' ').split())}]")
    without = soup.find_all(_NO_TEXT_OF_A_BOOK if is_book else [*_NO_TEXT, *_NO_TEXT_OF_A_BOOK])
    for item in [*without, *soup.find_all(attrs={"epub:type": _NOTE_TYPES})]:
        if not (item.name == "header" and item.find_parent(["article", "main"])):  # such a header is a title
            item.decompose()
    for table in soup.find_all("table"):
        if table.find(_LAYOUT) is None:  # otherwise the table is the page's layout
            _replace(soup, table, _mark("Table", table.find("caption")) or "[Table]")
    for figure in soup.find_all("figure"):
        # A figure may just frame text: only images and drawings are replaced by a mark.
        if figure.find(["img", "canvas", "video"]) is not None or not figure.get_text().strip():
            _replace(soup, figure, _mark("Figure", figure.find("figcaption")))
    return title, list(_paragraphs(soup.body or soup))


def _mark(kind: str, caption: Any) -> str:
    words = " ".join(caption.get_text().split()) if caption else ""
    return f"[{kind}: {words}]" if words else ""


def _replace(soup: Any, item: Any, text: str) -> None:
    paragraph = soup.new_tag("p")
    paragraph.string = text
    item.replace_with(paragraph)


def _paragraphs(root: Any) -> Iterator[str]:
    """Yield the text between block boundaries, in page order."""
    from bs4.element import PreformattedString

    texts: list[str] = []
    stack = [root]  # no recursion: a page may be nested deeper than Python's limit
    while stack:
        node = stack.pop()
        if not isinstance(node, str):
            before, behind = _MARKS.get(node.name, ("", ""))
            stack += [behind, *reversed(node.contents), before]
        elif not isinstance(node, PreformattedString):  # comments and declarations
            texts.append(node)
    is_verbatim = False
    for part in re.split(f"{_BOUNDARY}|([{_VERBATIM}{_RUNNING}])", "".join(texts).translate(_INVISIBLE)):
        if part in (_VERBATIM, _RUNNING):
            is_verbatim = part == _VERBATIM
        elif part and part.strip():
            # Keep line breaks that belong to the text (as in verse), not those of the file.
            lines = [line if is_verbatim else " ".join(line.split()) for line in part.split("\v")]
            yield "\n".join(lines).strip("\n" if is_verbatim else None)


def _xml(archive: zipfile.ZipFile, name: str) -> Any:
    from lxml import etree

    return etree.fromstring(_unpacked(archive, name), etree.XMLParser(resolve_entities=False, no_network=True))


def _package_path(archive: zipfile.ZipFile) -> str:
    for item in _xml(archive, "META-INF/container.xml").iter("{*}rootfile"):
        return str(item.get("full-path"))
    raise DataError("damaged: META-INF/container.xml names no book")


def _spine(root: Any, folder: PurePosixPath, stored: Collection[str]) -> list[str]:
    """List the parts in reading order, by their names in the zip file."""
    names = {item.get("id"): item.get("href") for item in root.iter("{*}item")}
    navigation = {item.get("id") for item in root.iter("{*}item") if "nav" in (item.get("properties") or "").split()}
    spine = [item.get("idref") for item in root.iter("{*}itemref") if item.get("idref") not in navigation]
    paths = [posixpath.normpath(folder / names[name]) for name in spine if names.get(name)]
    by_key = {_name_key(name): name for name in stored}
    return [path if path in stored else by_key.get(_name_key(path), unquote(path)) for path in paths]


def _name_key(name: str) -> str:
    """Normalize a name: zip files differ in Unicode composition, case, encoding and percent-escapes."""
    with suppress(UnicodeError):
        name = name.encode("cp437").decode("utf-8")  # zipfile assumes cp437 for names not flagged as UTF-8
    return unicodedata.normalize("NFC", unquote(name)).casefold()


def _check_unprotected(archive: zipfile.ZipFile, spine: list[str]) -> None:
    if _ENCRYPTION not in archive.namelist():
        return
    for data in _xml(archive, _ENCRYPTION).iter("{*}EncryptedData"):
        algorithms = [item.get("Algorithm") for item in data.iter("{*}EncryptionMethod")]
        names = [unquote(item.get("URI", "")) for item in data.iter("{*}CipherReference")]
        if any(algorithm not in _FONT_ALGORITHMS for algorithm in algorithms) and any(name in spine for name in names):
            raise DataError("encrypted: the book is protected against copying (DRM)")
