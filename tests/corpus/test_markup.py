"""Web pages, e-books, Markdown and plain texts."""

import zipfile
from pathlib import Path

import pytest

from longlora.corpus.markup import read_epub, read_html, read_markdown, read_plain
from longlora.errors import DataError

PAGE = """<html><head><title>A  Title</title><style>p {}</style></head><body>
<nav><a href="/">Home</a></nav><h1>The  Heading</h1>
<p>One paragraph, <em>with</em> emphasis<br>and a line.</p>
<div>Bare text <span>in</span> a block<p>and one in it</p></div>
<ul><li>first</li><li>second</li></ul>
<table><caption>Numbers</caption><tr><td>1</td><td>2</td></tr></table>
<figure><img src="x.png"><figcaption>A picture.</figcaption></figure>
<pre>for x in y:
    print(x)
</pre><script>alert(1)</script><!-- no text --><footer>Imprint</footer></body></html>"""


def test_a_web_page(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE, encoding="utf-8")
    read = read_html(tmp_path / "a.html")
    assert read.title == "A Title"
    assert read.text.split("\n\n") == [
        "The Heading",
        "One paragraph, with emphasis\nand a line.",
        "Bare text in a block",
        "and one in it",
        "- first",
        "- second",
        "[Table: Numbers]",
        "[Figure: A picture.]",
        "for x in y:\n    print(x)",
    ]


def test_the_encoding_that_a_page_names(tmp_path: Path) -> None:
    page = '<html><head><meta charset="latin-1"></head><p>caf\xe9</p></html>'
    (tmp_path / "a.html").write_bytes(page.encode("latin-1"))
    assert read_html(tmp_path / "a.html").text == "café"


def test_a_page_nested_deeper_than_python_may_call(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<div>" * 3000 + "deep" + "</div>" * 3000)
    assert "deep" in read_html(tmp_path / "a.html").text


def test_what_surrounds_the_text_of_a_web_page_is_left_out(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {number} tells of the {word} that was seen on the way, and of little else besides. " * 3
                  for number, word in enumerate(["fox", "crow", "river", "mill", "bridge", "town"])]  # fmt: skip
    texts = "".join(f"<p>{text}</p>" for text in paragraphs)
    menu = "<div class='menu'><ul><li><a href='/'>Start</a></li><li><a href='/a'>About us</a></li></ul></div>"
    foot = "<div class='sidebar related'><a href='/x'>Related posts that you may like</a></div>"
    page = f"<html><body>{menu}<div id='content'><h1>On the way</h1>{texts}<pre>a\n  b</pre></div>{foot}</body></html>"
    (tmp_path / "a.html").write_text(page, encoding="utf-8")
    read = read_html(tmp_path / "a.html").text.split("\n\n")
    assert read == ["On the way", *(text.strip() for text in paragraphs), "a\n  b"]


LETTERS = "<mrow><mi>E</mi><mo>=</mo><mi>m</mi></mrow>"
TEX = '<annotation encoding="application/x-tex"> E=m </annotation>'


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        (f"<math><semantics>{LETTERS}{TEX}</semantics></math>", "\\(E=m\\)"),
        (f'<math alttext="E=m" display="block">{LETTERS}</math>', "\\[E=m\\]"),
        (f"<math>{LETTERS}</math>", "E=m"),
    ],
)
def test_formulas_and_what_stands_around_them_are_read(tmp_path: Path, formula: str, text: str) -> None:
    words = ["fox", "crow", "river", "mill", "bridge", "town", "sea", "ship", "lamp"]
    said = [f"Paragraph {number} tells of the {word} that was seen on the way, and of little else besides. " * 3
            for number, word in enumerate(words)]  # fmt: skip
    said[4] += "We take % for it, and go on."
    page = "".join(f"<p>{paragraph.strip()}</p>" for paragraph in said).replace("%", formula)
    (tmp_path / "a.html").write_text(f"<html><body><nav>Menu</nav><article>{page}</article></body></html>")
    read = read_html(tmp_path / "a.html").text.split("\n\n")
    assert read == [paragraph.strip().replace("%", text) for paragraph in said]
    path = make_epub(tmp_path / "b.epub")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "a.epub", "w") as archive:
        for name in source.namelist():
            archive.writestr(name, page if name == "book/two.xhtml" else source.read(name))
    assert read_epub(tmp_path / "a.epub").text.split("\n\n")[1:] == read


def test_a_page_set_out_by_a_table(tmp_path: Path) -> None:
    cell = "<table><tr><td>1</td><td>2</td></tr></table>"
    page = f"<html><body><table><tr><td><h1>A heading</h1><p>Some text.</p>{cell}</td></tr></table></body></html>"
    (tmp_path / "a.html").write_text(page, encoding="utf-8")
    assert read_html(tmp_path / "a.html").text == "A heading\n\nSome text.\n\n[Table]"


CONTAINER = '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>{}</rootfiles></container>'
PACKAGE = """<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:title>The Book</dc:title></metadata><manifest><item id="b" href="two.xhtml"/><item id="n" href="nav.xhtml"
 properties="nav"/><item id="a" href="../text/one%201.xhtml"/></manifest>
<spine><itemref idref="n"/><itemref idref="a"/><itemref idref="b"/><itemref idref="lost"/></spine></package>"""
CHAPTER = (
    '<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops"><body><p>Chapter {}'
    '<a epub:type="noteref" href="#n">1</a>.</p></body></html>'
)


def make_epub(path: Path, rootfile: str = '<rootfile full-path="book/package.opf"/>', **extra: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/container.xml", CONTAINER.format(rootfile))
        archive.writestr("book/package.opf", PACKAGE)
        archive.writestr("text/one 1.xhtml", CHAPTER.format("one"))
        archive.writestr("book/two.xhtml", CHAPTER.format("two"))
        archive.writestr("book/nav.xhtml", CHAPTER.format("contents"))
        for name, content in extra.items():
            archive.writestr(name.replace("__", "/") + ".xml", content)
    return path


def test_an_e_book_in_the_order_of_its_spine(tmp_path: Path) -> None:
    read = read_epub(make_epub(tmp_path / "a.epub"))
    assert (read.title, read.text, read.num_parts) == ("The Book", "Chapter one.\n\nChapter two.", 2)


def test_a_part_stored_under_the_name_of_its_address(tmp_path: Path) -> None:
    path = tmp_path / "a.epub"
    with zipfile.ZipFile(make_epub(tmp_path / "b.epub")) as source, zipfile.ZipFile(path, "w") as archive:
        for name in source.namelist():
            archive.writestr(name.replace(" ", "%20"), source.read(name))
    assert read_epub(path).text == "Chapter one.\n\nChapter two."


@pytest.mark.parametrize(
    ("href", "stored"),
    [
        ("Chapter%201.xhtml", "Chapter%201.xhtml"),
        ("Chapter%201.xhtml", "Chapter 1.xhtml"),
        ("Einf\u00fchrung.xhtml", "Einfu\u0308hrung.xhtml"),
        ("Einfu\u0308hrung.xhtml", "Einf\u00fchrung.xhtml"),
        ("Einf%C3%BChrung.xhtml", "Einf\u00fchrung.xhtml"),
        ("CHAPTER.xhtml", "chapter.XHTML"),
        (
            "Einf\u00fchrung.xhtml",
            "Einf\u00fchrung.xhtml".encode().decode("cp437"),
        ),  # UTF-8 without the flag that says so
    ],
)
def test_parts_are_found_however_their_names_are_written(tmp_path: Path, href: str, stored: str) -> None:
    path = make_epub(tmp_path / "a.epub")
    package = PACKAGE.replace("../text/one%201.xhtml", href).replace("two.xhtml", "gone.xhtml")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/container.xml", CONTAINER.format('<rootfile full-path="book/package.opf"/>'))
        archive.writestr("book/package.opf", package)
        archive.writestr(f"book/{stored}", CHAPTER.format("one"))
    read = read_epub(path)
    assert read.text == "Chapter one."
    assert read.notes == ("parts that the book lists but does not contain: book/gone.xhtml",)


BOOK = """<html xmlns:epub="http://www.idpf.org/2007/ops"><body><header><h2>The He\u00adading</h2></header>
<p>It was a mo\u200bment, <ruby>\u77ac\u9593<rp>(</rp><rt>\u3057\u3085\u3093</rt><rp>)</rp></ruby>, and gone.</p>
<aside epub:type="footnote" id="n"><p>Of the kind</p><p>that passes.</p></aside>
<footer>The End</footer></body></html>"""


def test_what_a_book_has_beside_its_paragraphs(tmp_path: Path) -> None:
    path = make_epub(tmp_path / "b.epub")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "a.epub", "w") as archive:
        for name in source.namelist():
            archive.writestr(name, BOOK if name == "book/two.xhtml" else source.read(name))
    assert read_epub(tmp_path / "a.epub").text.split("\n\n")[1:] == [
        "The Heading",
        "It was a moment, \u77ac\u9593, and gone.",
        "[Footnote: Of the kind that passes.]",
        "The End",
    ]


def test_the_header_of_an_article_is_its_title(tmp_path: Path) -> None:
    page = "<body><header>Site</header><article><header><h1>Title</h1></header><p>Text.</p></article></body>"
    (tmp_path / "a.html").write_text(page, encoding="utf-8")
    assert read_html(tmp_path / "a.html").text == "Title\n\nText."


def test_a_book_keeps_what_a_web_page_would_lose(tmp_path: Path) -> None:
    chapter = "<html><body><div class='menu'><p>Soup of the day, and fish.</p></div>" + "<p>He read the bill.</p>" * 40
    with (
        zipfile.ZipFile(make_epub(tmp_path / "b.epub")) as source,
        zipfile.ZipFile(tmp_path / "a.epub", "w") as archive,
    ):
        for name in source.namelist():
            archive.writestr(name, chapter if name == "book/two.xhtml" else source.read(name))
    text = read_epub(tmp_path / "a.epub").text
    assert "Soup of the day, and fish." in text and text.count("He read the bill.") == 40


def encryption(algorithm: str, name: str) -> str:
    return (
        '<encryption xmlns:e="http://www.w3.org/2001/04/xmlenc#"><e:EncryptedData><e:EncryptionMethod '
        f'Algorithm="{algorithm}"/><e:CipherData><e:CipherReference URI="{name}"/></e:CipherData></e:EncryptedData>'
        "</encryption>"
    )


def test_a_protected_e_book(tmp_path: Path) -> None:
    marks = encryption("http://www.w3.org/2001/04/xmlenc#aes128-cbc", "book/two.xhtml")
    with pytest.raises(DataError, match=r"encrypted: .* \(DRM\)"):
        read_epub(make_epub(tmp_path / "a.epub", **{"META-INF__encryption": marks}))
    fonts = encryption("http://www.idpf.org/2008/embedding", "book/two.xhtml")
    assert read_epub(make_epub(tmp_path / "b.epub", **{"META-INF__encryption": fonts})).num_parts == 2


def test_damaged_e_books(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="damaged: not a complete e-book"):
        read_epub(make_epub(tmp_path / "a.epub", rootfile='<rootfile full-path="gone.opf"/>'))
    with pytest.raises(DataError, match="names no book"):
        read_epub(make_epub(tmp_path / "b.epub", rootfile=""))
    with pytest.raises(DataError, match=r"damaged or protected"):
        read_epub(make_epub(tmp_path / "c.epub", rootfile="<rootfile"))


def test_markdown_and_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("---\ndate: x\n---\n# The Title #\n\nSome *text*.\n")
    read = read_markdown(tmp_path / "a.md")
    assert (read.title, read.text) == ("The Title", "# The Title #\n\nSome *text*.")
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\n".encode("utf-16"))
    assert read_plain(tmp_path / "a.txt").text.lstrip("\ufeff") == "one\ntwo"
