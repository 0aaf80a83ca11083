"""Script in a document, a question, a file's name or a report's field is shown as text by a real browser."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from tests.faults.servers import free_port
from tests.inference.test_web import CHROMIUM, PASSWORD, ask, browser, served, upload, visit, wait_for_note
from tests.report.folders import write_retrieval

from longlora.inference.conversation import Usage
from longlora.inference.sessions import Session, SessionStore
from longlora.inference.web import LOCALHOST, build_page, launch_page
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


class Answer:
    """An answer that is all script."""

    def __init__(self) -> None:
        self.text, self.stopped, self.stopping = "", False, threading.Event()

    def __iter__(self) -> Iterator[str]:
        for script in SCRIPTS:
            self.text += f"{script}\n\n"
            yield script

    def summary(self) -> str:
        return f"answered {SCRIPTS[1]}"


class Conversation:
    """One whose model answers with script."""

    def ask(self, question: str) -> tuple[Answer, list[str]]:
        return Answer(), [SCRIPTS[0]]

    def finish(self, question: str, answer: Answer) -> None:
        assert answer.text

    def usage(self) -> Usage:
        return Usage(used=8, context=64, document=0)


def test_nothing_runs_of_an_answer(browser: "Browser") -> None:
    store = SessionStore(lambda: Session(Conversation(), lambda path, stop: ""))  # type: ignore[arg-type]
    model: Any = SimpleNamespace(name=SCRIPTS[1], context=64)
    built = build_page(model, store, suffixes=[".txt"], max_megabytes=1)
    address = launch_page(built, host=LOCALHOST, port=free_port(), password=PASSWORD, max_megabytes=1)
    try:
        page = visit(browser, address)
        ask(page, "why")
        wait_for_note(page, "answered")
        page.wait_for_timeout(1000)
        assert page.evaluate("window.ran") is None
    finally:
        built.close()


def test_nothing_runs_in_a_report(browser: "Browser", tmp_path: Path) -> None:
    for number, script in enumerate(SCRIPTS):
        write_retrieval(tmp_path / f"evaluated-{number}", script, {64: 1.0}, weights=str(number))
    page = browser.new_page()
    written = write_report([str(tmp_path / f"evaluated-{number}") for number in range(len(SCRIPTS))], tmp_path / "out")
    page.goto(written.as_uri())
    page.wait_for_timeout(500)
    assert page.evaluate("window.ran") is None
    assert "<script>" in page.inner_text("body")
