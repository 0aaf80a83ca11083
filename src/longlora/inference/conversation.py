"""A conversation: its turns, what fits into the context, and what the model reads next."""

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from longlora.errors import DataError
from longlora.inference.answer import StreamedAnswer
from longlora.inference.chat_model import ChatModel, ChatSettings, Message
from longlora.inference.documents import Document, cut_middle
from longlora.inference.reading import Memory, Progress, SavedReadings, shared_prefix

_QUESTION_SHARE, _QUESTION_TOKENS = 8, 512  # an eighth of the context, at most 512 tokens, stays free for questions


@dataclass(kw_only=True)
class Turn:
    """A question and its answer, as the model wrote it."""

    question: str
    answer: str


@dataclass(kw_only=True)
class Usage:
    """How full the context is, in tokens."""

    used: int
    context: int
    document: int

    @property
    def share(self) -> float:
        """Share of the context in use, 0 to 1."""
        return min(1.0, self.used / self.context)

    def __str__(self) -> str:
        document = f" · document {self.document:,}" if self.document else ""
        return f"{self.used:,} of {self.context:,} tokens of context ({self.share:.0%}){document}"


class Chat:
    """One conversation with a model, with or without a document.

    The document precedes the first question, within the user's turn, as in LongAlpaca. Everything read stays in memory
    as keys and values, so each question costs only its own tokens.

    Args:
        chat_model: the model.
        settings: how to answer.
        saved: where keys and values of documents are saved on disk, if anywhere.

    Raises:
        ConfigError: answers of the maximum length leave no room for a question, or the streaming window is impossible.
    """

    def __init__(self, chat_model: ChatModel, settings: ChatSettings, saved: SavedReadings | None = None) -> None:
        self.chat_model, self.settings, self._saved = chat_model, settings, saved
        self.turns: list[Turn] = []
        self.document: Document | None = None
        self.memory = Memory(chat_model, settings.stream_window)
        self.is_streaming = settings.stream_window is not None
        self._context = sys.maxsize if self.is_streaming else chat_model.context  # streams are endless
        self._answer_length = settings.answer_length(self._context)
        self._system: list[Message] = [{"role": "system", "content": settings.system}] if settings.system else []

    def clear(self) -> None:
        """Forget the turns; the document stays, and so does what was read of it."""
        self.turns = []
        if self.is_streaming:
            self.memory.forget()
        else:
            self.memory.begin([*self._document_prefix(), 0])

    def release(self) -> None:
        """Free keys and values, which the next question computes again; a streaming memory is small, and stays."""
        if not self.is_streaming:
            self.memory.forget()

    def forget_document(self) -> None:
        """Start over without a document."""
        self.document = None
        self.clear()

    def set_document(self, name: str, text: str) -> list[str]:
        """Start over with a document, and return notes for the user.

        Raises:
            DataError: it does not fit, and cutting is off.
        """
        document = Document(name=name, text=text, num_tokens=len(self.chat_model.tokens(text)))
        notes = [f"{name}: {document.num_tokens:,} tokens"]
        limit = self._room_for_document()
        if document.num_tokens > limit:
            beyond = (
                f"{name} has {document.num_tokens:,} tokens, and {limit:,} fit into the context of {self._context:,} "
                "along with a question and an answer"
            )
            if not self.settings.cut:
                raise DataError(f"{beyond}; shorten it, or let its middle be cut")
            document = cut_middle(document, lambda part: len(self.chat_model.tokens(part)), limit=limit)
            share = document.num_cut / document.num_tokens
            notes = [f"{beyond}: {document.num_cut:,} ({share:.1%}) were cut out of its middle"]
        self.document = document
        self.clear()
        return notes

    def read_document(self, progress: Progress | None = None, stop: threading.Event | None = None) -> list[str]:
        """Read the document before any question, or load what was read of it earlier; return notes for the user.

        A streaming memory reads it with the first question, which also reads what is left when `stop` is set.
        """
        if self.document is None or self.is_streaming:
            return []
        tokens, memory, model = self._document_prefix(), self.memory, self.chat_model.model
        notes: list[str] = []
        if self._saved is not None:
            cache, notes = self._saved.load(tokens, model)
            if cache is not None:
                memory.tokens, memory.cache = tokens, cache
                return notes
        num_read = memory.begin([*tokens, 0])
        num_read += memory.read(tokens[num_read:], stop=stop, progress=progress)
        memory.note(tokens)
        if num_read < len(tokens):
            return [*notes, f"stopped after {num_read:,} of {len(tokens):,} tokens; a question reads the rest"]
        if self._saved is not None:
            notes += self._saved.save(tokens, memory.cache, model)
        return notes

    def ask(self, question: str, progress: Progress | None = None) -> tuple[StreamedAnswer, list[str]]:
        """Prepare an answer, and notes for the user; `finish` then adds it to the conversation.

        Raises:
            DataError: the question alone does not fit.
        """
        notes: list[str] = []
        if self.is_streaming and not self.turns:
            self.memory.forget()  # leftovers of an abandoned answer
        if self.is_streaming and self.memory.cache.get_seq_length():
            prompt = self.chat_model.continuation(self._system, self.turns[-1].answer, question)
        else:
            prompt, notes = self._fitting_prompt(question)
        room = min(self._answer_length, self._context - len(prompt))
        if room < self._answer_length:
            notes.append(f"{room:,} tokens of context are left for the answer")
        answer = StreamedAnswer(
            self.chat_model, prompt, self.memory, self.settings, max_new_tokens=room, progress=progress
        )
        return answer, notes

    def finish(self, question: str, answer: StreamedAnswer) -> None:
        """Add a question and its answer, complete or stopped, to the conversation."""
        self.turns.append(Turn(question=question, answer=answer.text))

    def usage(self) -> Usage:
        """Return how full the context is."""
        context = self.settings.stream_window or self.chat_model.context
        return Usage(
            used=min(self.memory.cache.get_seq_length(), context),
            context=context,
            document=0 if self.document is None else self.document.num_tokens - self.document.num_cut,
        )

    def messages(self) -> list[Message]:
        """Return the messages so far, without the document."""
        return self._messages(self.turns, document="")

    def _messages(
        self, turns: Sequence[Turn], question: str | None = None, *, document: str | None = None
    ) -> list[Message]:
        """Return the messages as the model reads them, with a new question last."""
        if document is None:
            document = "" if self.document is None else f"{self.document.text}\n\n"
        messages = list(self._system)
        for turn in turns:
            messages.append({"role": "user", "content": document + turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
            document = ""
        if question is not None:
            messages.append({"role": "user", "content": document + question})
        return messages

    def _room_for_document(self) -> int:
        around = len(self.chat_model.prompt([*self._system, {"role": "user", "content": "\n\n"}]))
        questions = min(_QUESTION_TOKENS, self._context // _QUESTION_SHARE)
        return self._context - self._answer_length - around - questions

    def _document_prefix(self) -> list[int]:
        """Return the tokens that every first question starts with, by comparing two different ones."""
        one, other = (self.chat_model.prompt(self._messages([], question)) for question in ("What?", "1"))
        return one[: shared_prefix(one, other)]

    def _fitting_prompt(self, question: str) -> tuple[list[int], list[str]]:
        """Return the tokens of the conversation and a question, without the oldest turns if it is too long."""
        turns = list(self.turns)
        prompt = self.chat_model.prompt(self._messages(turns, question))
        while turns and len(prompt) + self._answer_length > self._context:
            del turns[0]
            prompt = self.chat_model.prompt(self._messages(turns, question))
        if len(prompt) >= self._context:
            raise DataError(
                f"the question and what precedes it have {len(prompt):,} tokens, and the context of {self._context:,} "
                "has no room for an answer; ask in fewer words"
            )
        forgotten = len(self.turns) - len(turns)
        self.turns = turns
        what = "question was" if forgotten == 1 else f"{forgotten} questions were"
        return prompt, [f"the oldest {what} forgotten to make room"] if forgotten else []
