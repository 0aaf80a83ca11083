"""What the page's parts do, without the page."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longlora.cli.chat import read_document
from longlora.inference.chat_model import ChatModel, ChatSettings
from longlora.inference.conversation import Chat, Usage
from longlora.inference.sessions import Session, SessionStore, usage_html

gradio = pytest.importorskip("gradio", reason="needs gradio")


@pytest.fixture
def store(chat_model: ChatModel) -> SessionStore:
    settings = ChatSettings(max_new_tokens=8, cut=False)
    return SessionStore(lambda: Session(Chat(chat_model, settings), lambda path, stop: read_document(path)))


def text_of(shown: tuple[Any, ...]) -> list[str]:
    return [message["content"] for message in shown[0]]


def one(steps: Iterator[tuple[Any, ...]]) -> tuple[Any, ...]:
    (step,) = steps
    return step


def test_an_answer_is_shown_as_it_grows_and_kept(store: SessionStore) -> None:
    steps = list(store.enter("ann").ask(" Where? ", [{"role": "user", "content": "before"}]))
    assert text_of(steps[0]) == ["before", "Where?"]
    assert steps[0][1].stop_btn and not steps[-1][1].stop_btn and steps[-1][1].submit_btn
    (turn,) = store.enter("ann").conversation.turns
    assert turn.question == "Where?" and text_of(steps[-1])[-1] == turn.answer
    assert "of 512 tokens of context" in steps[-1][2] and "first word after" in steps[-1][3]
    assert [text_of(step) for step in store.enter("ann").ask("  ", [])] == [[]]
    assert len(store.enter("ann").conversation.turns) == 1


def test_a_stopped_answer_is_marked(store: SessionStore) -> None:
    steps = store.enter("ann").ask("Where?", [])
    next(steps)
    store.stop("ann")
    store.stop("nobody")
    assert "stopped" in list(steps)[-1][3]
    assert "stopped" not in list(store.enter("ann").ask("And now?", []))[-1][3]


def test_a_document_begins_anew_and_goes_again(store: SessionStore, tmp_path: Path) -> None:
    list(store.enter("ann").ask("Where?", []))
    (tmp_path / "<sea>.txt").write_text("The ship lay still.")
    first, last = store.enter("ann").open(str(tmp_path / "<sea>.txt"))
    assert first[3] == "Reading &lt;sea&gt;.txt …"
    assert last[0] == [] and "document 19" in last[2] and last[3] == "&lt;sea&gt;.txt: 19 tokens"
    assert store.enter("ann").conversation.turns == []
    assert "document 19" in one(store.enter("ann").clear())[2]
    assert "document" not in one(store.enter("ann").close())[2]
    assert list(store.enter("ann").open(None)) == []
    store.leave("ann")
    assert len(store) == 0


def test_mistakes_are_told_without_the_servers_folders(store: SessionStore, tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\xff\x80")
    (tmp_path / "long.txt").write_text("x" * 1000)
    for name, complaint in (
        ("binary.txt", "^binary.txt cannot be read: not UTF-8"),
        ("long.txt", "^long.txt has 1,000 tokens"),
    ):
        steps = store.enter("ann").open(str(tmp_path / name))
        with pytest.raises(gradio.Error) as told:
            list(steps)
        assert re.search(complaint, told.value.message)
    steps = store.enter("ann").ask("x" * 600, [])
    shown = next(steps)
    assert shown[0] == [] and shown[1].value == "x" * 600  # to be shortened, not written again
    with pytest.raises(gradio.Error, match="ask in fewer words"):
        next(steps)


def test_what_breaks_inside_is_not_shown_outside(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret place")

    monkeypatch.setattr(Chat, "ask", broken)
    steps = store.enter("ann").ask("Where?", [])
    next(steps)
    with pytest.raises(gradio.Error) as told:
        next(steps)
    assert "secret" not in told.value.message


def test_the_meter_turns_red_when_it_is_nearly_full() -> None:
    half, full = (usage_html(Usage(used=used, context=100, document=0)) for used in (50, 95))
    assert 'aria-valuenow="50"' in half and "width:50.0%" in half and "full" not in half
    assert "fill full" in full
