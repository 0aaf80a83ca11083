"""Print articles with other programs, where they are installed: LaTeX, LibreOffice, Chromium, matplotlib."""

import html
import shutil
import subprocess
import tempfile
from pathlib import Path

from _articles import Article, Paragraph

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_SECONDS = 120


def latex(article: Article, *, options: str) -> str:
    """Write an article in LaTeX."""

    def paragraph(it: Paragraph) -> str:
        note = rf"\footnote{{{it.note}}}" if it.note else ""
        return " ".join([it.sentences[0] + note, *it.sentences[1:]])

    lines = [
        rf"\documentclass[{options}]{{article}}",
        r"\pagestyle{myheadings}",
        rf"\markboth{{\upshape {article.running_head}}}{{\upshape {article.running_head}}}",
        r"\begin{document}",
    ]
    title = rf"\begin{{center}}{{\Large\bfseries {article.title}\par}}\end{{center}}"
    abstract = rf"\begin{{quote}}{article.abstract.text}\end{{quote}}"
    lines.append(rf"\twocolumn[{title}{abstract}\bigskip]" if "twocolumn" in options else f"{title}\n{abstract}")
    for number, section in enumerate(article.sections):
        lines.append(rf"\section{{{section.heading.split(maxsplit=1)[1]}}}")
        for it in section.paragraphs:
            lines += [paragraph(it), ""]
        if number == 1:
            lines += [
                r"\begin{figure}[t]\setlength{\unitlength}{1pt}\begin{picture}(200,90)",
                r"\put(20,10){\line(1,0){160}}\put(20,10){\line(0,1){80}}",
                *(
                    rf"\put({20 + 20 * i},8){{\line(0,1){{4}}}}\put({16 + 20 * i},0){{\footnotesize {i}k}}"
                    for i in range(8)
                ),
                *(rf"\put({20 + 20 * i},{80 - 8 * i}){{\line(1,0){{20}}}}" for i in range(8)),
                rf"\end{{picture}}\caption{{{article.figure}}}\end{{figure}}",
            ]
        if number == 2:
            rows = r" \\ ".join(" & ".join(row) for row in article.table_rows)
            tabular = (
                rf"\begin{{tabular}}{{lrrr}}\hline model & 8k & 16k & 32k \\ \hline {rows} \\ \hline\end{{tabular}}"
            )
            lines.append(rf"\begin{{table}}[t]\caption{{{article.table}}}\centering {tabular}\end{{table}}")
    entries = "\n".join(rf"\bibitem{{r{n}}} {entry.split(maxsplit=1)[1]}" for n, entry in enumerate(article.references))
    lines += [rf"\begin{{thebibliography}}{{99}}{entries}\end{{thebibliography}}", r"\end{document}"]
    return "\n".join(lines)


def print_by_latex(path: Path, article: Article, *, options: str = "twocolumn,10pt") -> None:
    """Print an article with pdflatex."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "article.tex").write_text(latex(article, options=options), encoding="utf-8")
        for _ in range(2):
            _run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "article.tex"], folder)
        shutil.copy(Path(folder) / "article.pdf", path)


def web_page(article: Article, *, columns: int = 1) -> str:
    """Write an article as HTML with print styles."""
    style = (
        "@page { size: A4; margin: 22mm } body { font: 11pt/1.35 serif; text-align: justify; hyphens: auto }"
        f" .text {{ column-count: {columns}; column-gap: 8mm }} p {{ margin: 0 0 .6em }} h1 {{ text-align: center }}"
        " table { width: 100%; border-top: 1px solid; border-bottom: 1px solid } figure { margin: 1em 0 }"
    )
    parts = [f"<h1>{article.title}</h1><p>{article.abstract.text}</p><div class='text'>"]
    for section in article.sections:
        parts.append(f"<h2>{section.heading}</h2>")
        parts += [f"<p>{html.escape(paragraph.text)}</p>" for paragraph in section.paragraphs]
    rows = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in article.table_rows)
    parts.append(f"<p>Table 1: {article.table}</p><table>{rows}</table></div>")
    entries = "".join(f"<p>{entry}</p>" for entry in article.references)
    parts.append(f"<h2>References</h2>{entries}")
    head = f"<meta charset='utf-8'><style>{style}</style>"
    return f"<!doctype html><html lang='en'>{head}<body>{''.join(parts)}</body></html>"


def print_by_chromium(path: Path, article: Article, *, columns: int = 1) -> None:
    """Print an article's web page with headless Chromium."""
    program = next(found for name in CHROMIUM if (found := shutil.which(name)))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "article.html"
        source.write_text(web_page(article, columns=columns), encoding="utf-8")
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        _run(
            [
                program,
                *flags.split(),
                f"--user-data-dir={folder}/profile",
                f"--print-to-pdf={path.resolve()}",
                f"{source}",
            ],
            folder,
        )


_FLAT_DOCUMENT = """<?xml version="1.0" encoding="UTF-8"?>
<office:document xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0"
 xmlns:style="urn:oasis:names:tc:opendocument:xmlns:style:1.0"
 xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0"
 xmlns:table="urn:oasis:names:tc:opendocument:xmlns:table:1.0"
 xmlns:fo="urn:oasis:names:tc:opendocument:xmlns:xsl-fo-compatible:1.0"
 office:version="1.2" office:mimetype="application/vnd.oasis.opendocument.text">
<office:styles>
 <style:style style:name="P" style:family="paragraph"><style:paragraph-properties fo:text-align="justify"
  fo:text-indent="0.4cm" fo:orphans="2" fo:widows="2"/><style:text-properties fo:font-size="10pt"/></style:style>
 <style:style style:name="H" style:family="paragraph"><style:paragraph-properties fo:margin-top="0.3cm"
  fo:keep-with-next="always"/><style:text-properties fo:font-size="12pt" fo:font-weight="bold"/></style:style>
 <style:style style:name="T" style:family="paragraph"><style:paragraph-properties fo:text-align="center"
  fo:margin-bottom="0.4cm"/><style:text-properties fo:font-size="18pt" fo:font-weight="bold"/></style:style>
 <style:style style:name="Footnote" style:family="paragraph"><style:text-properties fo:font-size="8pt"/></style:style>
 <text:notes-configuration text:note-class="footnote" text:citation-style-name="A" text:citation-body-style-name="A"/>
 <style:style style:name="A" style:family="text"><style:text-properties style:text-position="super 58%"/></style:style>
</office:styles>
<office:automatic-styles>
 <style:page-layout style:name="L"><style:page-layout-properties fo:page-width="21cm" fo:page-height="29.7cm"
  fo:margin="2cm"/><style:header-style><style:header-footer-properties fo:margin-bottom="0.5cm"/></style:header-style>
  <style:footer-style><style:header-footer-properties fo:margin-top="0.5cm"/></style:footer-style></style:page-layout>
 <style:style style:name="S" style:family="section"><style:section-properties text:dont-balance-text-columns="true">
  <style:columns fo:column-count="COLUMNS" fo:column-gap="0.6cm"/></style:section-properties></style:style>
</office:automatic-styles>
<office:master-styles><style:master-page style:name="Standard" style:page-layout-name="L">
 <style:header><text:p>HEAD</text:p></style:header>
 <style:footer><text:p>Page <text:page-number/></text:p></style:footer></style:master-page></office:master-styles>
<office:body><office:text>BODY</office:text></office:body></office:document>
"""


def flat_document(article: Article, *, columns: int) -> str:
    """Write an article as LibreOffice's flat XML, with running heads, page numbers, footnotes and columns."""

    def paragraph(it: Paragraph) -> str:
        note = ""
        if it.note:
            note = (
                '<text:note text:note-class="footnote"><text:note-citation/><text:note-body>'
                f'<text:p text:style-name="Footnote">{it.note}</text:p></text:note-body></text:note>'
            )
        return f'<text:p text:style-name="P">{" ".join([it.sentences[0] + note, *it.sentences[1:]])}</text:p>'

    parts = [f'<text:p text:style-name="T">{article.title}</text:p>', paragraph(article.abstract)]
    parts.append('<text:section text:style-name="S" text:name="columns">')
    for number, section in enumerate(article.sections):
        parts.append(f'<text:p text:style-name="H">{section.heading}</text:p>')
        parts += [paragraph(it) for it in section.paragraphs]
        if number == 2:
            cell = '<table:table-cell><text:p text:style-name="P">{}</text:p></table:table-cell>'
            rows = "".join(
                f"<table:table-row>{''.join(map(cell.format, row))}</table:table-row>" for row in article.table_rows
            )
            parts.append(f'<text:p text:style-name="P">Table 1: {article.table}</text:p>')
            parts.append(f'<table:table><table:table-column table:number-columns-repeated="4"/>{rows}</table:table>')
    parts.append('<text:p text:style-name="H">References</text:p>')
    parts += [f'<text:p text:style-name="P">{entry}</text:p>' for entry in article.references]
    body = "".join([*parts, "</text:section>"])
    document = _FLAT_DOCUMENT.replace("COLUMNS", str(columns)).replace("HEAD", article.running_head)
    return document.replace("BODY", body)


def print_by_libreoffice(path: Path, article: Article, *, columns: int = 1) -> None:
    """Print an article with LibreOffice Writer."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "article.fodt"
        source.write_text(flat_document(article, columns=columns), encoding="utf-8")
        profile = f"-env:UserInstallation=file://{folder}/profile"
        _run(["soffice", profile, "--headless", "--convert-to", "pdf:writer_pdf_Export", source.name], folder)
        shutil.copy(Path(folder) / "article.pdf", path)


def print_by_matplotlib(path: Path, article: Article) -> None:
    """Print an article's paragraphs as text in matplotlib figures, a dozen per page."""
    import textwrap

    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    texts = [article.title, article.abstract.text]
    for section in article.sections:
        texts += [section.heading, *(paragraph.text for paragraph in section.paragraphs)]
    lines: list[str] = []
    for text in texts:
        lines += [*textwrap.wrap(text, 90), ""]
    with PdfPages(path) as pages:
        for begin in range(0, len(lines), 52):
            figure = Figure(figsize=(8.27, 11.69))
            for row, line in enumerate(lines[begin : begin + 52]):
                figure.text(0.1, 0.93 - row * 0.0165, line, fontsize=9, family="DejaVu Sans")
            pages.savefig(figure)


def _run(command: list[str], folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {(done.stderr or done.stdout)[-500:]}")


def installed(*programs: str) -> bool:
    """Return whether at least one of several programs is installed."""
    return any(shutil.which(program) for program in programs)
