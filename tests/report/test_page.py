"""The page says what was measured, escapes everything, and draws numbers where they belong."""

import json
import math
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.report.folders import (
    LENGTHS,
    write_against_base,
    write_curves,
    write_harness,
    write_retrieval,
    write_run,
)

from longlora.cli import main as cli
from longlora.report.blocks import Cell, Chart, Code, Level, Point, Report, ReportSection, Series, Table
from longlora.report.charts import HEIGHT, WIDTH, line_chart, round_ticks
from longlora.report.write import render_markdown, render_page, write_report

VOID = {"meta", "br", "link", "img", "input", "hr"}
EVIL = '<script>alert("x")</script>&|`*'


class Checker(HTMLParser):
    """Collects elements, and fails on a tag that is closed in the wrong place."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    for number, (name, shares) in enumerate({"far": (1, 1, 1, 1), "near": (1, 0.4, 0, 0), EVIL: (0, 0, 0, 0)}.items()):
        here = root / f"model{number}"
        for test in ("passkey", "recall", "topics"):
            write_retrieval(
                here / test, name, dict(zip(LENGTHS, shares, strict=True)), test=test, command=f"longlora {EVIL}"
            )
        write_curves(here, name, level=9 + number, rises_after=2048 if number else 8192)
    write_run(root / "run")
    return root


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("out") / "new"
    path = write_report([str(folder)], out)
    assert path == out / "report.html" and sorted(p.name for p in out.iterdir()) == ["report.html", "report.md"]
    return path.read_text(encoding="utf-8")


def text_of(page: str) -> str:
    return re.sub(r"<[^>]+>", " ", page)


def test_the_verdict_comes_first_and_is_by_the_hardest_test(page: str) -> None:
    text = text_of(page)
    far = "far reads to 8,192 of its 8,192 tokens, the longest tested, in all 3 tests: reliably at least 80% right."
    near = "near breaks down at 4,096 tokens: perplexity 9.6 at 2,048 tokens and 25.0 at 4,096 tokens, on the same "
    near += (
        "targets. It reads to 1,024 of its 8,192 tokens in the hardest of 3 tests, passkey: reliably at least 80% "
        "right."
    )
    near += " The longest tested is 8,192; at 2,048, 40% of 50 (95 % interval 28% to 54%) were right."
    assert text.index("How far do they read?") < text.index(far) < text.index(near) < text.index("Correct answers by")
    assert "cannot do any of the 3 tests reliably even at 1,024 tokens, the shortest tested, which does not say" in text


def test_tests_without_a_right_answer_are_one_line_and_no_chart(tmp_path: Path) -> None:
    for test in ("needle", "passkey", "topics"):
        shares = (1, 1, 0.5, 0) if test == "needle" else (0, 0, 0, 0)
        write_retrieval(tmp_path / test, "m", dict(zip(LENGTHS, shares, strict=True)), test=test)
    page = write_report([str(tmp_path)], tmp_path / "out").read_text(encoding="utf-8")
    text = " ".join(text_of(page).split())
    assert "passkey and topics m none of 400 at any length none none none 8,192" in text
    assert page.count("<figure>") == 1 and "<h3>needle</h3>" in page and "topics: m" not in page


def test_three_effective_lengths_go_by_their_names(tmp_path: Path) -> None:
    write_retrieval(tmp_path, "m", dict(zip(LENGTHS, (0.9, 0.9, 0.6, 0), strict=True)))  # lower ends 79 %, 79 %, 46 %
    text = " ".join(text_of(write_report([str(tmp_path)], tmp_path / "out").read_text(encoding="utf-8")).split())
    assert "by the bar by NoLiMa's by RULER's longest tested needle m 90% of 50" in text.replace("&#39;", "'")
    assert "at 1,024 too few questions 2,048 too few questions 8,192" in text
    assert "m was asked too few questions to say how far it reads by needle (90% of 50" in text


def test_a_model_that_lost_its_language_is_said_first(tmp_path: Path) -> None:
    write_against_base(tmp_path / "in", "m", "base", difference=1.0)
    write_retrieval(tmp_path / "in" / "needle", "m", dict(zip(LENGTHS, (1, 1, 1, 1), strict=True)))
    page = write_report([str(tmp_path / "in")], tmp_path / "out").read_text(encoding="utf-8")
    assert (
        "m has lost its language: perplexity 33.1 at 4,096 tokens, where its base has 12.2. It reads to 8,192" in page
    )


def test_the_page_asks_nobody_for_anything(page: str) -> None:
    tags = checked(page).seen
    assert {"script", "link", "img", "iframe", "object", "base"}.isdisjoint(tag for tag, _ in tags)
    for _, attributes in tags:
        assert not {"src", "srcset", "xlink:href", "action"} & attributes.keys()
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in page and "@import" not in page and "http" not in page.replace("http-equiv", "")
    assert any("default-src 'none'" in (attributes.get("content") or "") for _, attributes in tags)


def test_what_comes_from_files_is_escaped(page: str, folder: Path, tmp_path: Path) -> None:
    assert "<script" not in page and "&lt;script&gt;" in page
    write_report([str(folder)], tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert "<script" not in "".join(tables) and "&lt;script>" in text
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    assert len(widths) > 40 and all(width > 2 for width in widths)


def test_every_chart_has_a_text_alternative_and_its_numbers(page: str) -> None:
    tags = checked(page).seen
    charts = [attributes for tag, attributes in tags if tag == "svg" and attributes.get("role") == "img"]
    identities = {attributes.get("id") for _, attributes in tags}
    assert len(charts) >= 7
    for chart in charts:
        assert set((chart["aria-labelledby"] or "").split()) <= identities
    assert len([attributes["id"] for _, attributes in tags if "id" in attributes]) == len(identities - {None})
    assert page.count("<details>") == len(charts)
    hidden = [attributes for tag, attributes in tags if tag == "svg" and "role" not in attributes]
    assert all(attributes["aria-hidden"] == "true" for attributes in hidden)


def test_lines_are_told_apart_without_colour(page: str) -> None:
    first = page[page.index('<section id="retrieval">') :]
    picture = first[first.index('role="img"') : first.index("</figure>")]
    dashes = re.findall(r'<polyline class="line" points="[^"]*"( stroke-dasharray="[^"]*")?', picture)
    assert len(dashes) == len(set(dashes)) == 3
    assert "<circle" in picture and "<polygon" in picture


def chart(points: list[Point], **options: object) -> Chart:
    table = Table(caption="c", header=["m"], rows=[])
    series = [Series(label="m", style=0, points=points)]
    return Chart(title="t", x_label="x", y_label="y", series=series, table=table, **options)  # type: ignore[arg-type]


def drawn_points(svg: str) -> list[tuple[float, float]]:
    line = re.search(r'<polyline class="line" points="([^"]*)"', svg)
    assert line is not None
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line[1].split())]


def test_points_lie_where_their_numbers_say() -> None:
    values = [Point(x=256, y=0.0), Point(x=512, y=0.5), Point(x=2048, y=1.0)]
    places = drawn_points(line_chart(chart(values, percent=True, by_length=True), identity="i"))
    (x0, y0), (x1, y1), (x2, y2) = places
    assert (x2 - x0) == pytest.approx(3 * (x1 - x0), abs=0.2)  # log2: one doubling, then two
    assert (y0 - y2) == pytest.approx(2 * (y0 - y1), abs=0.2) and y2 < y1 < y0
    for kind in ({}, {"by_length": True}, {"wide_range": True}):
        for points in ([Point(x=1, y=1), Point(x=1000, y=900)], [Point(x=1, y=5), Point(x=1000, y=5)]):
            for x, y in drawn_points(line_chart(chart(points, **kind), identity="i")):
                assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT


def test_a_wide_range_is_drawn_in_equal_ratios() -> None:
    points = [Point(x=1, y=1), Point(x=2, y=10), Point(x=3, y=100)]
    for wide, ratio in ((True, 2), (False, 11)):
        (_, first), (_, second), (_, third) = drawn_points(line_chart(chart(points, wide_range=wide), identity="i"))
        assert (first - third) == pytest.approx(ratio * (first - second), rel=0.01)


def test_only_the_same_tokens_share_a_chart_of_perplexity(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        write_curves(tmp_path / name, name, level=9, rises_after=4096)
    path = tmp_path / "three" / "perplexity" / "perplexity.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": {"stride": 64}}))
    page = write_report([str(tmp_path)], tmp_path / "out").read_text(encoding="utf-8")
    section = page[page.index('<section id="perplexity">') : page.index('<section id="positions">')]
    assert [figure.count("<polyline") for figure in section.split("<figure>")[1:]] == [2, 1]


def test_a_loss_that_is_no_number_stands_in_the_table_alone(tmp_path: Path) -> None:
    write_curves(tmp_path / "in", "broken", level=9, rises_after=4096)
    path = tmp_path / "in" / "perplexity" / "perplexity.json"
    content = json.loads(path.read_text())
    content["perplexity"]["8192"]["perplexity"] = math.nan
    path.write_text(json.dumps(content))
    page = write_report([str(tmp_path / "in")], tmp_path / "out").read_text(encoding="utf-8")
    section = page[page.index('<section id="perplexity">') : page.index('<section id="positions">')]
    assert "<span>nan</span>" in section and 'data-label="8,192"' in section
    assert len(drawn_points(section)) == 3


def test_intervals_levels_and_single_points_are_drawn() -> None:
    svg = line_chart(
        chart([Point(x=8, y=0.5, low=0.2, high=0.8)], percent=True, by_length=True, levels=[Level(label="bar", y=0.9)]),
        identity="i",
    )
    assert 'class="whisker"' in svg and 'class="level l0"' in svg and "Horizontal line: bar" in svg
    assert "<polyline" not in svg and "<circle" in svg
    points = [Point(x=1, y=2, low=1, high=3), Point(x=2, y=2, low=1, high=3)]
    assert 'class="band"' in line_chart(chart(points), identity="i")
    assert "lowest" not in line_chart(chart([]), identity="i")  # a model without points is left out of the description


def test_ticks_are_round_and_few() -> None:
    for low, high in ((0, 1), (0, 8192), (2.1, 2.9), (-3, 44), (0, 110)):
        ticks = round_ticks(low, high)
        assert 3 <= len(ticks) <= 11 and all(low <= tick <= high + 1e-9 for tick in ticks)
    assert round_ticks(0, 8192)[:3] == [0, 2000, 4000]
    assert round_ticks(5, 5) == [5]


def test_markdown_has_the_same_numbers_and_a_fence_that_holds() -> None:
    table = Table(caption="c_d", header=["model", "1"], rows=[[Cell(text="a|b"), Cell(text="3 %")]])
    section = ReportSection(anchor="a", title="T", blocks=[table, Code(caption="run", text="echo ```")])
    report = Report(title="t", lead=["l"], sections=[section], date="d")
    text = render_markdown(report)
    assert "| a\\|b | 3 % |" in text and "````sh\necho ```\n````" in text
    assert "3 %" in render_page(report)


def test_short_context_by_perplexity_and_by_benchmarks(tmp_path: Path) -> None:
    root = tmp_path / "results"
    write_against_base(root / "long", "runs/long", "base", difference=0.05)
    write_harness(root / "long" / "harness", "runs/long", {"arc": 0.50, "piqa": 0.70})
    write_harness(root / "base" / "harness", "base", {"arc": 0.54, "piqa": 0.70, "other": 1.0}, weights="base")
    page = write_report([str(root)], tmp_path / "out").read_text(encoding="utf-8")
    text = " ".join(text_of(page).split())
    assert "+5.1 % perplexity at 4,096 tokens (+5.0 to +5.3 %); -2.0 points in 2 benchmarks" in text
    assert "worse than its base" in text
    assert "0.540 → 0.500 -0.040 ± 0.042" in text  # the errors of two independent shares
    assert "other, acc 1.000 ± 0.030 (100) not measured" in text
    assert "topics at 8 tokens" in text
    checked(page)
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "| 0.540 → 0.500 |" in markdown and "topics at 8 tokens" in markdown


def test_a_report_of_runs_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "one")
    page = write_report([str(tmp_path)], tmp_path / "out").read_text(encoding="utf-8")
    assert "Training loss" in page and "1.64 M tokens, 10.4 h, NVIDIA H100" in page and "Verdict" not in page
    checked(page)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["longlora", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capfd.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return call


def test_two_evaluations_are_compared(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    write_retrieval(tmp_path / "ours", "mine", dict(zip(LENGTHS, (1, 1, 0.2, 0), strict=True)))
    theirs = {"results": {"ruler_vt": {"4096,none": 0.98, "8192,none": 0.97}}, "model_name": "org/theirs"}
    theirs["n-samples"] = {"ruler_vt": {"effective": 1000}}
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "results_2026.json").write_text(json.dumps(theirs))
    status, out, err = run("compare", tmp_path / "ours", tmp_path / "theirs", "--out", tmp_path / "c")
    assert status == 0, err
    assert "mine reads to 2,048 tokens in needle: reliably at least 80% right. The longest tested is 8,192" in out
    assert "org/theirs reads to 8,192 tokens, the longest tested, in ruler_vt: reliably at least 80% right." in out
    assert "ruler_vt org/theirs 98% of 500" in " ".join(text_of((tmp_path / "c" / "report.html").read_text()).split())
    status, _, err = run("compare", tmp_path / "ours", "--out", tmp_path / "c")
    assert (status, "hold results of 1 model, but comparing takes two" in err) == (2, True)


def test_the_command(run: Callable[..., tuple[int, str, str]], folder: Path, tmp_path: Path) -> None:
    status, out, err = run("report", folder, "--out", tmp_path / "r")
    assert (status, out) == (0, f"written to {tmp_path / 'r' / 'report.html'}\n"), err
    status, _, err = run("report", tmp_path / "nowhere", "--out", tmp_path / "r")
    assert (status, "does not exist" in err) == (2, True)
