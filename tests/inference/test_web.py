"""The page itself, driven in Chromium: what a visitor with a document does, and two of them at once."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

REPOSITORY = Path(__file__).resolve().parents[2]
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
SECONDS = 60_000  # milliseconds to wait at most; a busy machine is slow
PASSWORD = "open sesame"

pytestmark = [
    pytest.mark.slow,  # a server and a browser: half a minute
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs a browser at {CHROMIUM}"),
    pytest.mark.filterwarnings("default"),  # gradio's and playwright's own
]


@contextmanager
def served(*options: str) -> Iterator[str]:
    """A server in a process of its own, as a user starts it; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["web", "tiny", "--port", str(port), "--password", "--max-megabytes", "1", *options]
    server = subprocess.Popen(
        [sys.executable, "-m", "longlora.cli", *command],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "src"), *sys.path]),
            "LONGLORA_WEB_PASSWORD": PASSWORD,
            "PYTHONUNBUFFERED": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert server.stdout is not None
    said = ""
    try:
        for line in server.stdout:
            said += line
            if "answers at" in line:
                break
        assert f"tiny answers at http://127.0.0.1:{port}/" in said, said
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
        server.stdout.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served("--max-new-tokens", "60") as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), headless=True, args=FLAGS)
        yield browser
        browser.close()


def visit(browser: "Browser", address: str, *, width: int = 1280, height: int = 900) -> "Page":
    """Open the page as a new visitor, who knows the password and nothing outside the server."""
    page = browser.new_context(viewport={"width": width, "height": height}).new_page()
    page.set_default_timeout(SECONDS)
    page.route(lambda url: not url.startswith(address), lambda route: route.abort())
    page.elsewhere = []
    page.on(
        "requestfailed",
        lambda request: page.elsewhere.append(request.url) if not request.url.startswith(address) else None,
    )
    page.goto(address)
    if page.locator("input[type=password]").count() or page.wait_for_selector("input[type=password]"):
        page.locator("input").first.fill("reader")
        page.locator("input[type=password]").fill(PASSWORD)
        page.get_by_role("button", name="Login").click()
    page.wait_for_selector("#question textarea")
    return page


def upload(page: "Page", path: Path) -> None:
    page.set_input_files("#document input[type=file]", str(path))


def ask(page: "Page", question: str) -> None:
    page.fill("#question textarea", question)
    page.press("#question textarea", "Enter")


def wait_for_note(page: "Page", part: str) -> str:
    page.wait_for_function("part => document.querySelector('#note').innerText.includes(part)", arg=part)
    return page.inner_text("#note")


def said(page: "Page") -> list[str]:
    """What stands in the chat: questions and answers in turn."""
    spoken = page.locator("#chat [data-testid=user], #chat [data-testid=bot]")
    return [text.strip() for text in spoken.all_inner_texts()]


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "sums.txt"
    path.write_text("def add(first, second):\n    return first + second\n")
    return path


def test_a_visitor_uploads_asks_twice_and_begins_anew(browser: "Browser", address: str, document: Path) -> None:
    page = visit(browser, address)
    assert "0 of 256 tokens" in page.inner_text("#usage")
    upload(page, document)
    wait_for_note(page, "sums.txt: 13 tokens")
    assert "18 of 256 tokens of context (7%) · document 13" in page.inner_text("#usage")
    ask(page, "def subtract(first, second):")
    assert "had 18 in memory" in wait_for_note(page, "tokens/s")
    question, answer = said(page)
    assert question == "def subtract(first, second):" and len(answer) > 5
    ask(page, "import os")
    page.wait_for_function("document.querySelectorAll('#chat [data-testid=bot]').length == 2")
    assert said(page)[:2] == [question, answer] and said(page)[2] == "import os"
    page.click("#again")
    page.wait_for_function("document.querySelector('#usage').innerText.includes('18 of 256')")
    assert said(page) == []
    assert page.elsewhere == []  # nothing was asked of any other server
    page.context.close()


@pytest.fixture
def endless() -> Iterator[str]:
    """Where an answer takes minutes: this model ends none by itself, and a window lets it go on."""
    with served("--stream-window", "64", "--max-new-tokens", "30000") as address:
        yield address


def test_an_answer_comes_in_pieces_and_can_be_stopped(browser: "Browser", endless: str) -> None:
    page = visit(browser, endless)
    ask(page, "def first(")
    page.wait_for_selector("#question button.stop-button")
    lengths = set()
    until = time.monotonic() + 30
    while time.monotonic() < until and len(lengths) < 3:
        lengths.update(map(len, said(page)[1:]))
    page.click("#question button.stop-button")
    wait_for_note(page, "stopped")
    assert max(lengths) < len(said(page)[1]) + 1
    assert len(lengths) >= 3, lengths
    page.wait_for_selector("#question button.submit-button")
    ask(page, "import os")  # and the conversation goes on
    page.wait_for_function("document.querySelectorAll('#chat [data-testid=bot]').length == 2")
    page.click("#again")  # which ends the answer as well
    page.wait_for_function("document.querySelectorAll('#chat [data-testid=bot]').length == 0")
    page.context.close()


def test_two_visitors_at_once_have_conversations_of_their_own(browser: "Browser", address: str, document: Path) -> None:
    one, two = visit(browser, address), visit(browser, address, width=390, height=844)
    upload(one, document)
    wait_for_note(one, "sums.txt")
    ask(one, "def subtract(first, second):")
    ask(two, "import sys")
    for page, question in ((one, "def subtract(first, second):"), (two, "import sys")):
        wait_for_note(page, "tokens/s")
        assert said(page)[0] == question and len(said(page)) == 2
    assert "document" in one.inner_text("#usage") and "document" not in two.inner_text("#usage")
    for page in (one, two):
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0  # nothing to scroll sideways
        page.context.close()


def test_an_upload_opens_for_nobody_and_the_page_for_no_other_site(
    browser: "Browser", address: str, document: Path
) -> None:
    one, two = visit(browser, address), visit(browser, address)
    upload(one, document)
    wait_for_note(one, "sums.txt")
    link = one.locator("#document a").first.get_attribute("href")
    assert link is not None and "/file=" in link
    assert [page.request.get(link).status for page in (one, two)] == [404, 404]
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        assert two.request.get(f"{address}config", headers=headers).status == 403
    for page in (one, two):
        page.context.close()


def test_on_a_phone_the_page_opens_at_its_top(browser: "Browser", address: str) -> None:
    page = visit(browser, address, width=390, height=844)
    page.wait_for_function("document.activeElement === document.querySelector('#question textarea')")
    assert page.evaluate("scrollY") == 0
    assert page.evaluate("document.querySelector('#title').getBoundingClientRect().top") >= 0
    page.context.close()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("large.txt", b"word " * 400_000, "size"),
        ("picture.png", b"\x89PNG", "type"),
        ("binary.txt", b"\xff\xfe\x00", "not UTF-8 text"),
    ],
)
def test_files_that_cannot_be_read_are_refused(
    browser: "Browser", address: str, tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    page = visit(browser, address)
    upload(page, tmp_path / name)
    page.wait_for_selector(".toast-body")
    toast = page.inner_text(".toast-body")
    assert re.search(complaint, toast, re.IGNORECASE), toast
    assert str(tmp_path) not in toast and "/tmp" not in toast
    assert "0 of 256 tokens" in page.inner_text("#usage")
    page.context.close()


def test_a_wrong_password_opens_nothing(browser: "Browser", address: str) -> None:
    page = browser.new_context().new_page()
    page.set_default_timeout(SECONDS)
    page.goto(address)
    page.wait_for_selector("input[type=password]")
    page.locator("input").first.fill("reader")
    page.locator("input[type=password]").fill("guess")
    page.get_by_role("button", name="Login").click()
    page.wait_for_timeout(2000)
    assert page.locator("#question textarea").count() == 0
    answer = page.request.get(f"{address}config")
    assert answer.status == 401
    page.context.close()


def test_a_port_that_is_taken_is_told(address: str) -> None:
    port = address.rsplit(":", 1)[1].strip("/")
    done = subprocess.run(
        [sys.executable, "-m", "longlora.cli", "web", "tiny", "--port", port, "--host", "0.0.0.0"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "src"), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert f"port {port} of 0.0.0.0 is taken" in done.stderr
    assert "consider --password" in done.stderr
