"""What the parts of the web page do. Each visitor has a key, and behind it a session with a conversation."""

import html
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longlora.errors import LongLoRAError
from longlora.inference.answer import Answer
from longlora.inference.conversation import Conversation, Usage
from longlora.inference.documents import ReadDocument, join_documents

NUM_REMEMBERED = 4
Message = dict[str, Any]  # as gradio's chatbot has them
Shown = tuple[Any, Any, Any, Any]  # what changes of the chat, the question's box, the meter and the note below


def usage_html(usage: Usage) -> str:
    """A bar, and the numbers behind it."""
    share = min(1.0, usage.used / usage.context)
    colour = "fill full" if share > 0.9 else "fill"
    document = f" · document {usage.document:,}" if usage.document else ""
    return (
        f'<div class="track" role="progressbar" aria-label="context in use" aria-valuenow="{share * 100:.0f}">'
        f'<div class="{colour}" style="width:{share:.1%}"></div></div>'
        f'<div class="numbers">{usage.used:,} of {usage.context:,} tokens of context ({share:.0%}){document}</div>'
    )


@dataclass(kw_only=True)
class Session:
    """One conversation, and the answer that is being written in it."""

    conversation: Conversation
    answer: Answer | None = None
    reading: threading.Event = field(default_factory=threading.Event)
    """Set to end the reading of a document."""

    def stop(self) -> None:
        """End the answer or the reading, if there is one."""
        self.reading.set()
        if self.answer is not None:
            self.answer.stop()


class SessionStore:
    """A conversation for each visitor, by a key of theirs.

    Keys and values of a long document are large, so only the `num_remembered` conversations that spoke last keep
    theirs; another one reads its text again when it goes on.

    Args:
        begin: makes a conversation.
        num_remembered: conversations whose keys and values stay in memory.
    """

    def __init__(self, begin: Callable[[], Conversation], num_remembered: int = NUM_REMEMBERED) -> None:
        self._begin = begin
        self._num_remembered = num_remembered
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def enter(self, key: str) -> Session:
        """Find a visitor's session, or open one, before the model is used there."""
        if key not in self._sessions:
            self._sessions[key] = Session(conversation=self._begin())
        self._sessions.move_to_end(key)
        for other in list(self._sessions.values())[: -self._num_remembered]:
            other.conversation.release()
        return self._sessions[key]

    def usage_at_first(self) -> Usage:
        """How full the context is where nothing has been said."""
        return self._begin().usage()

    def find(self, key: str) -> Session | None:
        """Find a visitor's session without using it."""
        return self._sessions.get(key)

    def leave(self, key: str) -> None:
        """Close a session, and end what is being said in it."""
        session = self._sessions.pop(key, None)
        if session is not None:
            session.stop()

    def __len__(self) -> int:
        return len(self._sessions)


class PageActions:
    """The actions, apart from the page, so that they can be tried without one."""

    def __init__(self, sessions: SessionStore, read_document: ReadDocument) -> None:
        self._sessions = sessions
        self._read_document = read_document

    def ask(self, key: str, question: str, said: list[Message]) -> Iterator[Shown]:
        """Write an answer, piece by piece."""
        import gradio

        same = gradio.skip()
        question = question.strip()
        if not question:
            yield said, same, same, ""
            return
        session = self._sessions.enter(key)
        conversation = session.conversation
        asked = [*said, {"role": "user", "content": question}]
        try:
            answer, notes = conversation.ask(question)
            session.answer = answer
            yield asked, _writing(), same, _note(notes)
            for _ in answer:
                yield [*asked, _spoken(answer.text)], same, same, same
            conversation.finish(question, answer)
        except Exception as error:
            yield said, _waiting(question), same, ""
            raise self._told(error) from error
        finally:
            session.answer = None
        text = answer.text or ("(stopped)" if answer.stopped else "(nothing)")
        notes.append(answer.summary())
        yield [*asked, _spoken(text)], _waiting(), usage_html(conversation.usage()), _note(notes)

    def open(self, key: str, path: str | None) -> Iterator[Shown]:
        """Begin anew about an uploaded document."""
        import gradio

        same = gradio.skip()
        if path is None:
            return
        session = self._sessions.enter(key)
        session.reading.clear()
        conversation = session.conversation
        yield [], same, same, f"Reading {html.escape(Path(path).name)} …"
        try:
            name, text = join_documents([Path(path)], self._read_document)
            notes = conversation.set_document(name, text) + conversation.read_document(stop=session.reading)
        except Exception as error:
            conversation.forget_document()
            yield _afresh(conversation)
            raise self._told(error, path) from error
        yield [], _waiting(), usage_html(conversation.usage()), _note(notes)

    def close(self, key: str) -> Shown:
        """Begin anew without a document."""
        conversation = self._sessions.enter(key).conversation
        conversation.forget_document()
        return _afresh(conversation)

    def clear(self, key: str) -> Shown:
        """Begin anew about the same document."""
        conversation = self._sessions.enter(key).conversation
        conversation.clear()
        return _afresh(conversation)

    def stop(self, key: str) -> None:
        """End the answer that is being written."""
        session = self._sessions.find(key)
        if session is not None:
            session.stop()

    def leave(self, key: str) -> None:
        """Forget a visitor who has closed the page."""
        self._sessions.leave(key)

    def _told(self, error: Exception, path: str = "") -> Exception:
        """What a visitor is told: their mistakes, without the server's folders; of all else only that it happened."""
        import gradio

        if isinstance(error, LongLoRAError):
            message = str(error).replace(path, Path(path).name) if path else str(error)
            return gradio.Error(html.escape(message), print_exception=False)
        return gradio.Error("Something went wrong; the server's log tells what.", print_exception=True)


def _note(notes: list[str]) -> str:
    return html.escape("\n\n".join(notes))


def _spoken(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _writing() -> Any:
    """The question's box while an answer is being written: a button that stops it."""
    import gradio

    return gradio.Textbox(value="", submit_btn=False, stop_btn=True)


def _waiting(question: str = "") -> Any:
    """The question's box when it is the visitor's turn."""
    import gradio

    return gradio.Textbox(value=question, submit_btn=True, stop_btn=False)


def _afresh(conversation: Conversation) -> Shown:
    return [], _waiting(), usage_html(conversation.usage()), ""
