"""Files that give no text are named with a reason that tells what to do."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from longlora.corpus.extract import ExtractSettings, check_installed, extract, find_files, read_by_docling
from longlora.corpus.pdf import pdfium
from longlora.corpus.shelf import read_shelf
from longlora.errors import ConfigError, DataError


def save(path: Path, act: Callable[[Any], None] = lambda canvas: None, **options: Any) -> Path:
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(path), **options)
    act(canvas)
    canvas.showPage()
    canvas.save()
    return path


def write(canvas: Any) -> None:
    canvas.drawString(72, 700, "A page with a line of text on it.")


def scan(canvas: Any) -> None:
    from PIL import Image
    from reportlab.lib.utils import ImageReader

    canvas.drawImage(ImageReader(Image.new("RGB", (60, 80), "white")), 0, 0, 596, 842)


@pytest.mark.parametrize(("limit", "named"), [("_MOST_PAGES", "pages"), ("_MOST_WORDS", "words and drawings")])
def test_more_than_memory_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, named: str) -> None:
    def write_two(canvas: Any) -> None:
        write(canvas)
        canvas.showPage()
        write(canvas)

    path = save(tmp_path / "a.pdf", write_two)
    assert extract(path, ExtractSettings()).text
    monkeypatch.setattr(pdfium, limit, 1)
    with pytest.raises(DataError, match=f"too large: it has more than 1 {named}; split it"):
        extract(path, ExtractSettings())


def test_encrypted(tmp_path: Path) -> None:
    from reportlab.lib.pdfencrypt import StandardEncryption

    path = save(tmp_path / "a.pdf", write, encrypt=StandardEncryption("secret", strength=128))
    with pytest.raises(DataError, match="encrypted, and needs a password: save a copy without one"):
        extract(path, ExtractSettings())


def test_encryption_that_opens_without_a_password(tmp_path: Path) -> None:
    from reportlab.lib.pdfencrypt import StandardEncryption

    path = save(tmp_path / "a.pdf", write, encrypt=StandardEncryption("", "owner", canPrint=0, strength=128))
    assert extract(path, ExtractSettings()).text == "A page with a line of text on it."


def test_truncated(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pdf", write)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"truncated: .* download it again"):
        extract(path, ExtractSettings())


@pytest.mark.parametrize("count", [506, 80_508])
def test_bytes_of_nul_behind_the_end(tmp_path: Path, count: int) -> None:
    path = save(tmp_path / "a.pdf", write)
    path.write_bytes(path.read_bytes() + b"\0" * count)
    assert extract(path, ExtractSettings()).text == "A page with a line of text on it."


def test_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(b"%PDF-1.4\nnothing of a document\n%%EOF\n")
    with pytest.raises(DataError, match="damaged: pdfium finds no document in it"):
        extract(path, ExtractSettings())


def test_scanned(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"scanned: 1 of 1 pages are images .* ocrmypdf"):
        extract(save(tmp_path / "a.pdf", scan), ExtractSettings())


def test_a_scan_whose_text_was_recognised(tmp_path: Path) -> None:
    def act(canvas: Any) -> None:
        scan(canvas)
        text = canvas.beginText(72, 700)
        text.setTextRenderMode(3)  # invisible, as programs that recognise text write it
        text.textOut("What the scan shows, as recognised.")
        canvas.drawText(text)

    assert extract(save(tmp_path / "a.pdf", act), ExtractSettings()).text == "What the scan shows, as recognised."


@pytest.mark.parametrize(("written", "scanned"), [(3, 4), (1, 6)])
def test_pages_beside_scans(tmp_path: Path, written: int, scanned: int) -> None:
    def act(canvas: Any) -> None:
        for number in range(written + scanned):
            if number < written:
                write(canvas)
                canvas.drawString(72, 600, f"It is the {('first', 'second', 'third')[number]} of them, as one sees.")
            else:
                scan(canvas)
            canvas.showPage()

    path = save(tmp_path / "a.pdf", act)
    if written == 1:  # a cover, or a stamp
        with pytest.raises(DataError, match="scanned: 6 of 8 pages are images"):
            extract(path, ExtractSettings())
    else:
        record = extract(path, ExtractSettings())
        assert record.notes[0] == "5 of 8 pages have no text: 4-8" and "the third of them" in record.text


def test_other_padding_behind_the_end(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pdf", write)
    whole = path.read_bytes()
    path.write_bytes(whole + b"<!-- served by a proxy -->" * 5000)
    assert extract(path, ExtractSettings()).text == "A page with a line of text on it."
    path.write_bytes(whole + b"\n7 0 obj\n<</Length 12")  # an addition that broke off
    with pytest.raises(DataError, match="truncated"):
        extract(path, ExtractSettings())


def test_pages_without_text_are_noted(tmp_path: Path) -> None:
    def act(canvas: Any) -> None:
        write(canvas)
        canvas.showPage()

    record = extract(save(tmp_path / "a.pdf", act), ExtractSettings())
    assert record.notes == ["1 of 2 pages have no text: 2"] and record.pages == 2


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.pdf", b"", "empty: it has no bytes"),
        ("a.txt", b"", "empty: it has no bytes"),
        ("a.pdf", b"<html>Not found</html>", "not a PDF: it does not begin with %PDF"),
        ("a.epub", b"no zip file", "damaged: not a complete e-book"),
        ("a.html", b"<html><script>1</script></html>", "without text"),
        ("a.txt", "café".encode("latin-1"), "not UTF-8 text; convert it"),
        ("a.txt", b"a\0b", "not text: it contains NUL characters"),
        ("a.html", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not text: it contains NUL characters"),
        ("a.md", b"---\ntitle: x\n---\n", "without text"),
    ],
)
def test_other_reasons(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        extract(path, ExtractSettings())


def test_pages_without_a_word(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="without text on any of its 1 pages"):
        extract(save(tmp_path / "a.pdf"), ExtractSettings())


def test_fonts_that_do_not_tell_their_letters(tmp_path: Path) -> None:
    # A font that draws its letters itself, and gives them names that no one knows.
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Resources<</Font<</F 5 0 R>>>>/Contents 4 0 R>>",
        "<</Length 45>>stream\nBT /F 10 Tf 20 100 Td <0102010201020102> Tj ET\nendstream",
        "<</Type/Font/Subtype/Type3/FontBBox[0 0 1 1]/FontMatrix[1 0 0 1 0 0]/FirstChar 1/LastChar 2/Widths[1 1]"
        "/Encoding<</Type/Encoding/Differences[1/g1/g2]>>/CharProcs<</g1 6 0 R/g2 6 0 R>>/Resources<<>>>>",
        "<</Length 31>>stream\n1 0 0 0 1 1 d1 0 0 .8 .8 re f  \nendstream",
    ]
    body = "".join(f"{number} 0 obj\n{text}\nendobj\n" for number, text in enumerate(objects, start=1))
    path = tmp_path / "a.pdf"
    path.write_text(f"%PDF-1.4\n{body}trailer<</Root 1 0 R/Size 7>>\n%%EOF\n")
    with pytest.raises(DataError, match=r"fonts without a valid Unicode mapping \(\d+ of \d+ characters\)"):
        extract(path, ExtractSettings())


def test_a_file_that_vanished(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unreadable \\(No such file"):
        extract(tmp_path / "gone.txt", ExtractSettings())


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"a\.txt is a pipe or a device, .* save it as a file first"):
        find_files([str(tmp_path / "a.txt")])


def test_a_pdf_is_known_by_its_content(tmp_path: Path) -> None:
    record = extract(save(tmp_path / "a.pdf", write).rename(tmp_path / "a.html"), ExtractSettings())
    assert (record.kind, record.text) == ("pdf", "A page with a line of text on it.")


def test_a_document_of_which_nothing_is_left_is_no_record(tmp_path: Path) -> None:
    def act(canvas: Any) -> None:
        for number, text in enumerate(["References", "[1] One. 1999.", "[2] Two. 2001.", "[3] Three. 2020."]):
            canvas.setFont("Helvetica" if number else "Helvetica-Bold", 12)
            canvas.drawString(72, 700 - 15 * number, text)

    path = save(tmp_path / "a.pdf", act)
    with pytest.raises(DataError, match=r"without text .*; left out: 10 words of references"):
        extract(path, ExtractSettings())
    assert "One." in extract(path, ExtractSettings(references="keep")).text


def test_sources(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "sub/a.PDF", ".hidden.txt", "c.docx"):
        (tmp_path / name).write_text("x")
    assert find_files([str(tmp_path), str(tmp_path / "b.txt")]) == [tmp_path / "b.txt", tmp_path / "sub/a.PDF"]
    assert f"{tmp_path} has 1 files of unsupported kinds (1 .docx)" in caplog.text
    with pytest.raises(DataError, match="does not exist"):
        find_files([str(tmp_path / "nothing.pdf")])
    with pytest.raises(DataError, match=r"c\.docx is not a supported kind of file; supported are: \.pdf"):
        find_files([str(tmp_path / "c.docx")])
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="must contain a readable file"):
        find_files([str(tmp_path / "bare")])


def test_docling_as_its_documentation_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not docling itself, which is not installed: the calls that its documentation names.
    class Document:
        name = "Its name"
        pages = (1, 2)

        def export_to_markdown(self) -> str:
            return "# A heading" if errors == [] else ""

    errors: list[str] = []
    result = SimpleNamespace(document=Document(), errors=errors)
    converter = SimpleNamespace(convert=lambda path, raises_on_error: result)
    module = SimpleNamespace(DocumentConverter=lambda: converter)
    monkeypatch.setitem(sys.modules, "docling", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "docling.document_converter", module)
    read = read_by_docling(tmp_path / "a.pdf")
    assert (read.text, read.title, read.num_parts) == ("# A heading", "Its name", 2)
    errors.append("stage 1 failed")
    with pytest.raises(DataError, match="docling: stage 1 failed"):
        read_by_docling(tmp_path / "a.pdf")
    result.errors = []
    monkeypatch.setattr("longlora.corpus.extract.version", lambda package: "2.0")
    with pytest.raises(DataError, match="without text"):
        extract(save(tmp_path / "a.pdf"), ExtractSettings(engine="docling"))


def test_libraries_that_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed()
    monkeypatch.setitem(sys.modules, "docling", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="--engine docling needs docling, which is not installed: pip install"):
        read_shelf([], tmp_path, settings=ExtractSettings(engine="docling"))
    monkeypatch.setattr("longlora.corpus.extract.find_spec", lambda name: None if name in ("bs4", "lxml") else 1)
    with pytest.raises(ConfigError, match=r"this needs bs4, lxml, which are not installed: pip install 'longlora\[co"):
        check_installed()


def test_the_engine_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longlora.corpus.extract.find_spec", lambda name: None)
    assert "pypdfium2" in extract(save(tmp_path / "a.pdf", write), ExtractSettings(engine="auto")).tool
