"""Texts out of web pages, e-books, Markdown and plain files."""

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

_BLOCKS = "p h1 h2 h3 h4 h5 h6 dt dd blockquote figcaption caption div section article tr hr td th ul ol dl main body"
# Where a paragraph ends, and from where on text is kept as it is or is not: characters that stand in no text.
_BOUNDARY, _VERBATIM, _RUNNING = "\ufdd0", "\ufdd1", "\ufdd2"
# What is written before the content of an element, and what behind it.
_MARKS = {
    **dict.fromkeys(_BLOCKS.split(), (_BOUNDARY, _BOUNDARY)),
    "li": (f"{_BOUNDARY}- ", _BOUNDARY),
    "pre": (_BOUNDARY + _VERBATIM, _RUNNING + _BOUNDARY),
    "br": ("\v", ""),
}
# What a page has beside its text.
_NO_TEXT = "script style noscript template svg nav header footer aside form button iframe object head".split()
_NO_TEXT_OF_A_BOOK = [name for name in _NO_TEXT if name not in ("header", "footer", "aside")] + ["rt", "rp", "rtc"]
_NOTES = re.compile(r"\b(footnote|endnote|rearnote)\b")
# Where a word may be broken; not the joiners, which change how letters are written.
_INVISIBLE = dict.fromkeys((0x00AD, 0x200B, 0x2060, 0xFEFF))
_LAYOUT = ["table", "h1", "h2", "h3"]
_NOTE_TYPES = re.compile(r"\b(noteref|pagebreak)\b")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_ENCRYPTION = "META-INF/encryption.xml"
# Fonts may be scrambled in a book that is free to read.
_FONT_ALGORITHMS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")


_MIB = 2**20
# Far above any text that people wrote, and what a machine reads within a minute and some GiB of memory.
MOST_TEXT_BYTES = 256 * _MIB  # of a plain file
MOST_PAGE_BYTES = 16 * _MIB  # of a page of HTML, whose tree takes thirty times as much memory
MOST_BOOK_BYTES = 64 * _MIB  # of an e-book's parts together, unpacked
_MOST_COMPARISONS = 10**10  # characters of a page that are looked through to find its main part


class UnreadableFileError(Exception):
    """One file gives no text, for the reason given; whether that ends the run is for the caller to say."""


@dataclass(frozen=True, kw_only=True)
class MarkedText:
    """A text, the title it gives itself, and how many parts it came in."""

    text: str
    title: str
    num_parts: int = 1
    notes: tuple[str, ...] = ()  # what a reader should know of: pages without text, what is left out
    has_references: bool = False  # it had a list of them, whether that is still in the text or not


def read_html(path: Path) -> MarkedText:
    """Read a web page: the paragraphs, headings and list items of what trafilatura takes for its main part.

    Raises:
        UnreadableFileError: it is no text.
    """
    with path.open("rb") as file:
        content = read_bounded(file, MOST_PAGE_BYTES, "the page")
    if b"\0" in content and content[:2] not in _UTF16_MARKS:
        raise UnreadableFileError("no text: it holds NUL characters")
    soup, has_formulas = _parsed(content)
    page = str(soup) if has_formulas else content  # before the text is taken out of the soup
    title, paragraphs = _page_text(soup)
    return MarkedText(text="\n\n".join(_main_part(page, paragraphs)), title=title)


def read_bounded(file: IO[bytes], most: int, what: str) -> bytes:
    """Read to the end of a file.

    Raises:
        UnreadableFileError: that is further off than `most` bytes.
    """
    content = file.read(most + 1)
    if len(content) > most:
        raise UnreadableFileError(f"too large: {what} has more than {most // _MIB} MiB; split it")
    return content


def _main_part(page: str | bytes, paragraphs: list[str]) -> list[str]:
    """Leave out what trafilatura does not keep, unless it finds hardly anything: it judges long pages alone."""
    import trafilatura

    try:
        kept = _letters(trafilatura.extract(page, favor_recall=True, include_comments=False) or "")
    except RecursionError:  # a page may be nested deeper than Python goes
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
        UnreadableFileError: no zip file, no book inside, or protected.
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
        raise UnreadableFileError(f"damaged: no whole e-book ({str(error).strip(chr(39))})") from error
    except (etree.XMLSyntaxError, RuntimeError, ValueError) as error:  # RuntimeError: a zip file with a password
        raise UnreadableFileError(f"damaged or protected ({error})") from error
    title = root.findtext(".//{http://purl.org/dc/elements/1.1/}title") or ""
    texts = [text for text in texts if text]
    notes = (f"parts that the book names and does not hold: {', '.join(missing)}",) if missing else ()
    return MarkedText(text="\n\n".join(texts), title=" ".join(title.split()), num_parts=len(texts), notes=notes)


def _unpacked(archive: zipfile.ZipFile, name: str, most: int = MOST_PAGE_BYTES) -> bytes:
    """Unpack a part of an e-book, whatever size it says it has."""
    with archive.open(name) as part:
        return read_bounded(part, most, name)


def _parts(archive: zipfile.ZipFile, spine: list[str]) -> Iterator[bytes]:
    left = MOST_BOOK_BYTES
    for name in dict.fromkeys(spine):
        if name in archive.NameToInfo:
            content = _unpacked(archive, name)
            left -= len(content)
            if left < 0:
                raise UnreadableFileError(
                    f"too large: its parts have more than {MOST_BOOK_BYTES // _MIB} MiB together; split it"
                )
            yield content


def read_markdown(path: Path) -> MarkedText:
    """Read Markdown as it is written; a block of settings at its top is left out, its first heading is the title.

    Raises:
        UnreadableFileError: it is not UTF-8.
    """
    text = re.sub(r"\A---\n.*?\n(---|\.\.\.)\n", "", _decoded(path), flags=re.DOTALL)
    heading = re.search(r"^#{1,6}\s+(.+?)\s*#*$", text, re.MULTILINE)
    return MarkedText(text=text.strip(), title=heading.group(1) if heading else "")


def read_plain(path: Path) -> MarkedText:
    """Read a text as it is; nothing is reflowed.

    Raises:
        UnreadableFileError: it is not UTF-8.
    """
    return MarkedText(text=_decoded(path).strip(), title="")


def _decoded(path: Path) -> str:
    with path.open("rb") as file:
        content = read_bounded(file, MOST_TEXT_BYTES, "the text")
    encoding = "utf-16" if content[:2] in _UTF16_MARKS else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UnreadableFileError("not UTF-8 text; convert it, for instance with iconv") from error
    if "\0" in text:
        raise UnreadableFileError("no text: it holds NUL characters")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _parsed(content: bytes) -> tuple[Any, bool]:
    """Parse a page of HTML or XHTML, its formulas written as TeX, else by their letters; tell whether it has any."""
    from bs4 import BeautifulSoup

    try:
        content.decode("utf-8")
        encoding = "utf-8"
    except UnicodeDecodeError:
        encoding = None  # the page may name it
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
    """Return the title and all paragraphs of a parsed page, of which nothing is left then."""
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    for name in ("epub:type", "role"):
        for note in soup.find_all(attrs={name: _NOTES}):
            if note.find(attrs={name: _NOTES}) is None:  # not the list of them
                _replace(soup, note, f"[Footnote: {' '.join(note.get_text(' ').split())}]")
    without = soup.find_all(_NO_TEXT_OF_A_BOOK if is_book else [*_NO_TEXT, *_NO_TEXT_OF_A_BOOK])
    for item in [*without, *soup.find_all(attrs={"epub:type": _NOTE_TYPES})]:
        if not (item.name == "header" and item.find_parent(["article", "main"])):  # the title of what is there
            item.decompose()
    for table in soup.find_all("table"):
        if table.find(_LAYOUT) is None:  # else a page set out by a table
            _replace(soup, table, _mark("Table", table.find("caption")) or "[Table]")
    for figure in soup.find_all("figure"):
        # A figure may be a frame around text: only what is drawn or pictured is replaced by its mark.
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
    """Yield what stands between the boundaries of blocks, in the order of the page."""
    from bs4.element import PreformattedString

    texts: list[str] = []
    stack = [root]  # by hand: a page's nesting may be deeper than Python's own limit
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
            # A line break of the text's own (of verse) stays; those of the file do not.
            lines = [line if is_verbatim else " ".join(line.split()) for line in part.split("\v")]
            yield "\n".join(lines).strip("\n" if is_verbatim else None)


def _xml(archive: zipfile.ZipFile, name: str) -> Any:
    from lxml import etree

    return etree.fromstring(_unpacked(archive, name), etree.XMLParser(resolve_entities=False, no_network=True))


def _package_path(archive: zipfile.ZipFile) -> str:
    for item in _xml(archive, "META-INF/container.xml").iter("{*}rootfile"):
        return str(item.get("full-path"))
    raise UnreadableFileError("damaged: META-INF/container.xml names no book")


def _spine(root: Any, folder: PurePosixPath, stored: Collection[str]) -> list[str]:
    """List the parts by their names in the zip file."""
    names = {item.get("id"): item.get("href") for item in root.iter("{*}item")}
    navigation = {item.get("id") for item in root.iter("{*}item") if "nav" in (item.get("properties") or "").split()}
    spine = [item.get("idref") for item in root.iter("{*}itemref") if item.get("idref") not in navigation]
    paths = [posixpath.normpath(folder / names[name]) for name in spine if names.get(name)]
    by_key = {_name_key(name): name for name in stored}
    return [path if path in stored else by_key.get(_name_key(path), unquote(path)) for path in paths]


def _name_key(name: str) -> str:
    """Write a name as every program would: zip files differ in letters' composition, case, encoding, percent signs."""
    with suppress(UnicodeError):
        name = name.encode("cp437").decode("utf-8")  # what zipfile takes names for that do not say they are UTF-8
    return unicodedata.normalize("NFC", unquote(name)).casefold()


def _check_unprotected(archive: zipfile.ZipFile, spine: list[str]) -> None:
    if _ENCRYPTION not in archive.namelist():
        return
    for data in _xml(archive, _ENCRYPTION).iter("{*}EncryptedData"):
        algorithms = [item.get("Algorithm") for item in data.iter("{*}EncryptionMethod")]
        names = [unquote(item.get("URI", "")) for item in data.iter("{*}CipherReference")]
        if any(algorithm not in _FONT_ALGORITHMS for algorithm in algorithms) and any(name in spine for name in names):
            raise UnreadableFileError("encrypted: the book is protected against copying (DRM)")
