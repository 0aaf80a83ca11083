"""Script in a document, a question, a file's name or a report's field is shown as text by a real browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.inference.test_web import CHROMIUM, ask, browser, served, upload, visit, wait_for_note
from tests.report.folders import write_retrieval

from longlora.report.write import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs a browser at {CHROMIUM}"),
    pytest.mark.filterwarnings("default"),  # gradio's and playwright's own
]
assert browser  # a fixture

SCRIPTS = [
    "<script>window.ran = 1</script>",
    "<img src=x onerror='window.ran = 1'>",
    "<svg onload='window.ran = 1'>",
    "[a](javascript:window.ran=1)",
    "<iframe srcdoc='<script>parent.ran = 1</script>'></iframe>",
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served("--max-new-tokens", "8") as address:
        yield address


def test_nothing_runs_on_the_chat_page(browser: "Browser", address: str, tmp_path: Path) -> None:
    page = visit(browser, address)
    document = tmp_path / "<img src=x onerror='window.ran = 1'>.txt"
    document.write_text("\n".join(SCRIPTS))
    upload(page, document)
    wait_for_note(page, "tokens")
    for script in SCRIPTS:
        ask(page, f"{script} why")
        wait_for_note(page, "tokens")
    page.wait_for_timeout(1000)
    assert page.evaluate("window.ran") is None
    # gradio takes the tags out of what it shows; the questions around them arrived.
    assert page.inner_text("#chat").count("why") >= 1


def test_nothing_runs_in_a_report(browser: "Browser", tmp_path: Path) -> None:
    for number, script in enumerate(SCRIPTS):
        write_retrieval(tmp_path / f"evaluated-{number}", script, {64: 1.0}, weights=str(number))
    page = browser.new_page()
    written = write_report([str(tmp_path / f"evaluated-{number}") for number in range(len(SCRIPTS))], tmp_path / "out")
    page.goto(written.as_uri())
    page.wait_for_timeout(500)
    assert page.evaluate("window.ran") is None
    assert "<script>" in page.inner_text("body")
