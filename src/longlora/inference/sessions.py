"""Sessions of the web page's visitors, whose conversations share one model's memory."""

import html
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from longlora.errors import LongLoRAError
from longlora.inference.conversation import Chat, Usage
from longlora.inference.documents import join_documents

NUM_REMEMBERED = 4
Message = dict[str, Any]  # as in gradio's chatbot
ReadUpload = Callable[[Path, threading.Event], str]  # until the event is set
Shown = tuple[Any, Any, Any, Any]  # updates of the chat, the question box, the meter and the note below


class Session:
    """One visitor's conversation. Each action yields what the page shows from then on."""

    def __init__(self, conversation: Chat, read_upload: ReadUpload) -> None:
        self.conversation, self._read_upload = conversation, read_upload
        self.stopping = threading.Event()  # set it to stop the current answer or reading

    def ask(self, question: str, said: list[Message]) -> Iterator[Shown]:
        """Stream an answer."""
        import gradio

        same = gradio.skip()
        question = question.strip()
        if not question:
            yield said, same, same, ""
            return
        asked = [*said, {"role": "user", "content": question}]
        try:
            answer, notes = self.conversation.ask(question)
            self.stopping = answer.stopping
            yield asked, _question_box(is_answering=True), same, _note(notes)
            for _ in answer:
                yield [*asked, {"role": "assistant", "content": answer.text}], same, same, same
            self.conversation.finish(question, answer)
        except Exception as error:
            yield said, _question_box(question), same, ""
            raise _told(error) from error
        text = answer.text or ("(stopped)" if answer.stopped else "(nothing)")
        yield self._shown([*asked, {"role": "assistant", "content": text}], [*notes, answer.summary()])

    def open(self, path: str | None) -> Iterator[Shown]:
        """Start over with an uploaded document."""
        import gradio

        same = gradio.skip()
        if path is None:
            return
        self.stopping = stopping = threading.Event()
        yield [], same, same, f"Reading {html.escape(Path(path).name)} …"
        try:
            document = join_documents([Path(path)], lambda file: self._read_upload(file, stopping))
            notes = self.conversation.set_document(*document)
            notes += self.conversation.read_document(stop=stopping)
        except Exception as error:
            yield from self.close()
            raise _told(error, path) from error
        yield self._shown([], notes)

    def close(self) -> Iterator[Shown]:
        """Start over without a document."""
        self.conversation.forget_document()
        yield self._shown([])

    def clear(self) -> Iterator[Shown]:
        """Start over with the same document."""
        self.conversation.clear()
        yield self._shown([])

    def _shown(self, said: list[Message], notes: list[str] | None = None) -> Shown:
        """Return the state of the page when it is the visitor's turn."""
        return said, _question_box(), usage_html(self.conversation.usage()), _note(notes or [])


class SessionStore:
    """One session per visitor, by the visitor's key.

    Keys and values of a long document are large, so only the `NUM_REMEMBERED` most recent conversations keep theirs;
    the others read their text again when they continue.
    """

    def __init__(self, begin: Callable[[], Session]) -> None:
        self.begin = begin
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def enter(self, key: str) -> Session:
        """Return a visitor's session, new if necessary, before it uses the model."""
        if key not in self._sessions:
            self._sessions[key] = self.begin()
        self._sessions.move_to_end(key)
        for other in list(self._sessions.values())[:-NUM_REMEMBERED]:
            other.conversation.release()
        return self._sessions[key]

    def stop(self, key: str) -> None:
        """Stop a session's current answer or reading, while it uses the model."""
        if key in self._sessions:
            self._sessions[key].stopping.set()

    def leave(self, key: str) -> None:
        """Forget a visitor who has closed the page."""
        self.stop(key)
        self._sessions.pop(key, None)

    def __len__(self) -> int:
        return len(self._sessions)


def usage_html(usage: Usage) -> str:
    """Return a bar and the numbers behind it, as HTML."""
    colour = "fill full" if usage.share > 0.9 else "fill"
    return (
        f'<div class="track" role="progressbar" aria-label="context in use" aria-valuenow="{usage.share * 100:.0f}">'
        f'<div class="{colour}" style="width:{usage.share:.1%}"></div></div><div class="numbers">{usage}</div>'
    )


def _told(error: Exception, path: str = "") -> Exception:
    """Convert an error for the visitor: user errors without the server's folders, and no details of any others."""
    import gradio

    if isinstance(error, LongLoRAError):
        message = str(error).replace(path, Path(path).name) if path else str(error)
        return gradio.Error(html.escape(message), print_exception=False)
    return gradio.Error("Something went wrong; see the server's log.", print_exception=True)


def _note(notes: list[str]) -> str:
    return html.escape("\n\n".join(notes))


def _question_box(question: str = "", *, is_answering: bool = False) -> Any:
    """Return the question box, with a button to send the question or, during an answer, one to stop it."""
    import gradio

    return gradio.Textbox(value=question, submit_btn=not is_answering, stop_btn=is_answering)
