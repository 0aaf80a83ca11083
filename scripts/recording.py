"""Record commands in a pseudo-terminal, and render their output as an animated SVG.

    python scripts/recording.py [FILE]     # docs/pictures/terminal.svg

The commands plan a published model, write a recipe for the tiny model and train it on source files of Python's standard
library. Long pauses are shortened. The SVG needs no scripts and no external fonts; without animation (in print, or
under `prefers-reduced-motion`) it shows the last screen.
"""

import argparse
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

from rich.color import Color
from rich.console import Console
from rich.segment import Segment
from rich.terminal_theme import DIMMED_MONOKAI as THEME
from rich.text import Text

import longlora
from longlora.support.files import write_atomically
from longlora.tiny.stdlib import standard_library_files

COMMANDS = (
    "longlora plan Qwen/Qwen3-8B --context 65536 --gpu-type rtx-4090",
    "longlora init tiny --context 1024 --gpu-type rtx-4090 --data books/ --out recipe.yaml",
    "longlora train recipe.yaml max_steps=8 gradient_accumulation_steps=2",
)
NUM_COLUMNS, NUM_ROWS = 92, 32
CELL_WIDTH, CELL_HEIGHT, MARGIN = 8.0, 18.0, 16.0  # pixels
PROMPT = Text("$ ", "green")
TYPING, READING, LONGEST_PAUSE, HOLD = 0.8, 4.0, 0.6, 6.0  # seconds


@dataclass
class Row:
    """A row of the terminal: its successive texts, each with the second at which it appeared."""

    versions: list[tuple[float, Text]] = field(default_factory=list)


def main() -> int:
    """Record the commands and write the SVG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=default_file())
    target = parser.parse_args().file
    with tempfile.TemporaryDirectory() as folder:
        books = Path(folder) / "books"
        books.mkdir()
        for path in sorted(standard_library_files("train"), key=lambda path: path.stat().st_size)[-40:-28]:
            shutil.copy(path, books / path.name)
        write_atomically(target, render(record(COMMANDS, Path(folder))))
    return 0


def default_file() -> Path:
    """Return the path at which the docs expect the recording."""
    return Path(__file__).parents[1] / "docs" / "pictures" / "terminal.svg"


def record(commands: Sequence[str], folder: Path) -> list[Row]:
    """Run longlora commands in a folder, and return the rows that a terminal would have shown.

    Raises:
        RuntimeError: a command failed.
    """
    rows: list[Row] = []
    now = 0.0
    for command in commands:
        rows.append(Row([(now, PROMPT), (now + TYPING, Text.assemble(PROMPT, (command, "bold")))]))
        now += 2 * TYPING
        before, is_new = time.monotonic(), True
        for text, ends in _output(command, folder):
            now += min(time.monotonic() - before, LONGEST_PAUSE)
            before = time.monotonic()
            first, *more = [text[at : at + NUM_COLUMNS] for at in range(0, max(len(text), 1), NUM_COLUMNS)]
            if is_new:
                rows.append(Row())
            if not rows[-1].versions or rows[-1].versions[-1][1].markup != first.markup:
                rows[-1].versions.append((now, first))
            rows += [Row([(now, rest)]) for rest in more if ends]
            is_new = ends
        now += READING
    rows.append(Row([(now, PROMPT)]))
    return rows


def _output(command: str, folder: Path) -> Iterator[tuple[Text, bool]]:
    """Yield each text of a row as it arrives, and whether it completes the row."""
    program, *words = shlex.split(command)
    assert program == "longlora", command
    environment = os.environ | {
        "COLUMNS": str(NUM_COLUMNS),
        "LINES": str(NUM_ROWS),
        "TERM": "xterm-256color",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": str(Path(longlora.__file__).parents[1]),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "longlora.cli", *words],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    waiting = b""
    while received := _read(ours):
        *complete, waiting = (waiting + received).split(b"\n")
        for line in complete:
            yield _shown(line.rstrip(b"\r")), True
        if shown := _shown(waiting):
            yield shown, False
    os.close(ours)
    if process.wait():
        raise RuntimeError(f"{command} ended with status {process.returncode}")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # on Linux, the end of a terminal whose other side was closed
        return b""


def _shown(line: bytes) -> Text:
    """Return what remains visible of a line: the text after its last carriage return, without cursor movements."""
    text = line.decode("utf-8", errors="ignore")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-ln-z]", "", text)  # all but colors, which end in m
    return Text.from_ansi(text.rstrip("\r").rsplit("\r", 1)[-1])


def render(rows: Sequence[Row]) -> str:
    """Render the rows as an SVG that plays them in a loop."""
    end = max(row.versions[-1][0] for row in rows if row.versions) + HOLD
    width, height = NUM_COLUMNS * CELL_WIDTH + 2 * MARGIN, NUM_ROWS * CELL_HEIGHT + 2 * MARGIN
    last_scroll = -max(0, len(rows) - NUM_ROWS) * CELL_HEIGHT
    scroll = {0.0: 0.0}
    for number, row in enumerate(rows):
        if row.versions and number >= NUM_ROWS:
            scroll[row.versions[0][0]] = -(number + 1 - NUM_ROWS) * CELL_HEIGHT
    steps = "".join(f"{_percent(at, end)}{{transform:translateY({y:g}px)}}" for at, y in scroll.items())
    rules, drawn = [], []
    for number, row in enumerate(rows):
        for version, (start, text) in enumerate(row.versions):
            is_last = version == len(row.versions) - 1
            stop = end if is_last else row.versions[version + 1][0]
            name = f"r{number}-{version}"
            y = MARGIN + (number + 0.75) * CELL_HEIGHT
            rules.append(_visible(name, start, stop, end))
            still = "" if is_last else " earlier"
            drawn.append(f'<g class="{name}{still}">{_draw(text, y)}</g>')
    style = f"""
text{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre}}
.earlier{{visibility:hidden}}#rows{{transform:translateY({last_scroll:g}px)}}
@media(prefers-reduced-motion:no-preference){{#rows{{animation:scroll {end:.2f}s step-end infinite}}
@keyframes scroll{{{steps}}}
{"".join(rules)}}}"""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">'
        f"<title>Terminal recording: {escape(', then '.join(COMMANDS))}</title><style>{style}</style>"
        f'<rect width="{width:g}" height="{height:g}" rx="8" fill="{_hex(THEME.background_color)}"/>'
        f'<svg y="{MARGIN:g}" width="{width:g}" height="{NUM_ROWS * CELL_HEIGHT:g}" '
        f'viewBox="0 {MARGIN:g} {width:g} {NUM_ROWS * CELL_HEIGHT:g}"><g id="rows">{"".join(drawn)}</g></svg></svg>\n'
    )


def _visible(name: str, start: float, stop: float, end: float) -> str:
    """Return the CSS rule that shows a text from `start` to `stop` and hides it before and after."""
    frames = "" if start == 0 else "0%{visibility:hidden}"
    frames += f"{_percent(start, end)}{{visibility:visible}}"
    frames += "" if stop == end else f"{_percent(stop, end)}{{visibility:hidden}}"
    return f".{name}{{animation:{name} {end:.2f}s step-end infinite}}@keyframes {name}{{{frames}}}\n"


def _percent(at: float, end: float) -> str:
    return f"{100 * at / end:.2f}%"


def _draw(text: Text, y: float) -> str:
    """Draw a row: each stretch of one style exactly as wide as its cells, whatever the font."""
    drawn, column = [], 0
    for segment in Console(width=10_000, color_system="truecolor").render(text):
        length = Segment.get_line_length([segment])
        if segment.text.strip():
            stripped = segment.text.lstrip()
            start = column + length - Segment.get_line_length([Segment(stripped)])
            stripped = stripped.rstrip()
            cells = Segment.get_line_length([Segment(stripped)])
            drawn.append(
                f'<text x="{MARGIN + start * CELL_WIDTH:g}" y="{y:g}" textLength="{cells * CELL_WIDTH:g}" '
                f'lengthAdjust="spacingAndGlyphs"{_style(segment)}>{escape(stripped)}</text>'
            )
        column += length
    return "".join(drawn)


def _style(segment: Segment) -> str:
    style = segment.style
    color = Color.parse("default") if style is None or style.color is None else style.color
    attributes = f' fill="{_hex(color.get_truecolor(THEME))}"'
    if style is not None and style.bold:
        attributes += ' font-weight="bold"'
    if style is not None and style.dim:
        attributes += ' opacity="0.6"'
    return attributes


def _hex(color: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


if __name__ == "__main__":
    sys.exit(main())
