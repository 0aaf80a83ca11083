"""The page in a real browser, with the network off: nothing is asked for, nothing runs out of the screen."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.report.folders import LENGTHS, write_curves, write_retrieval, write_run

from longlora.report.write import write_report

pytestmark = pytest.mark.slow

ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    for number in range(3):
        name = f"runs/a-model-with-quite-a-long-name-{number}/adapter"
        for test in ("needle", "topics"):
            shares = dict(zip(LENGTHS, (1, 0.6, 0.5, 0.1 * number), strict=True))
            write_retrieval(root / str(number) / test, name, shares, test=test)
        write_curves(root / str(number), name, level=9, rises_after=4096 if number else 8192)
    write_run(root / "run")
    return write_report([str(root)], root / "out")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_renders_alone_in_both_schemes_and_widths(browser: Any, page_file: Path, scheme: str) -> None:
    for width in (1200, 360):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
        page = context.new_page()
        requests, problems = list[str](), list[str]()
        page.on("request", lambda request, kept=requests: kept.append(request.url))
        page.on("console", lambda message, kept=problems: kept.append(message.text))
        page.on("pageerror", lambda error, kept=problems: kept.append(str(error)))
        page.goto(page_file.as_uri())
        assert requests == [page_file.as_uri()] and problems == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        pictures = page.locator("svg[role=img]")
        assert pictures.count() >= 5
        sizes = [pictures.nth(index).bounding_box() for index in range(pictures.count())]
        assert all(size and 250 < size["width"] <= width and size["height"] > 150 for size in sizes)
        assert page.get_by_role("table").count() >= 6  # still tables where the style sheet makes cards of them
        names = page.locator("section:not(:has(.maps)) tbody th:visible")  # broken between words, not after each letter
        assert min(names.nth(index).bounding_box()["width"] for index in range(names.count())) > 100
        assert (
            lightness(page, "body", "backgroundColor") > 0.9
            if scheme == "light"
            else (lightness(page, "body", "backgroundColor") < 0.2)
        )
        for selector in ("body", ".tick", "thead th", ".good", ".bad", ".lead span", "summary", "td.heat"):
            for index in range(page.locator(selector).count() if selector == "td.heat" else 1):
                assert contrast(page, selector, index) >= 4.5, (selector, index, width)
        context.close()


def rgb(page: Any, selector: str, index: int, name: str) -> list[float]:
    """A computed colour as numbers from 0 to 1, drawn onto a canvas because it may be given in any colour space."""
    return page.evaluate(
        """([selector, index, name]) => {
            let element = document.querySelectorAll(selector)[index], color = getComputedStyle(element)[name];
            while (name === "backgroundColor" && color === "rgba(0, 0, 0, 0)")
                color = getComputedStyle(element = element.parentElement)[name];
            const canvas = document.createElement("canvas").getContext("2d");
            canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(value => value / 255);
        }""",
        [selector, index, name],
    )


def luminance(color: list[float]) -> float:
    """Relative luminance (WCAG 2.2)."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def lightness(page: Any, selector: str, name: str) -> float:
    return sum(rgb(page, selector, 0, name)) / 3


def contrast(page: Any, selector: str, index: int) -> float:
    """WCAG's contrast of an element's text with what is behind it; 4.5 is enough for text of any size."""
    ink = "fill" if selector == ".tick" else "color"
    values = sorted(luminance(rgb(page, selector, index, name)) for name in (ink, "backgroundColor"))
    return (values[1] + 0.05) / (values[0] + 0.05)
