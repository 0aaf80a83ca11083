"""A conversation: what has been said, what of it fits into the context, and what the model is to read next."""

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from longlora.errors import DataError
from longlora.inference.answer import Answer
from longlora.inference.chat_model import ChatModel, ChatSettings, Message
from longlora.inference.documents import Document, cut_middle
from longlora.inference.reading import Memory, Progress, SavedReadings, shared_prefix

_QUESTION_SHARE, _QUESTION_TOKENS = 8, 512  # an eighth of the context, at most so many tokens, stays free for questions


@dataclass(kw_only=True)
class Turn:
    """A question and what was answered, as the model wrote it."""

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
        """Of the context that is in use, 0 to 1."""
        return min(1.0, self.used / self.context)

    def __str__(self) -> str:
        document = f" · document {self.document:,}" if self.document else ""
        return f"{self.used:,} of {self.context:,} tokens of context ({self.share:.0%}){document}"


class Conversation:
    """One conversation with a model, about a document or not.

    The document stands before the first question, within the user's turn, as in LongAlpaca. Everything that has been
    read stays in memory as keys and values, so each question costs its own tokens and no more.

    Args:
        chat_model: the model.
        settings: how to answer.
        saved: where what was read of a document is kept on disk, if anywhere.

    Raises:
        ConfigError: answers as long as they may get leave no room for a question, or the streaming window cannot be.
    """

    def __init__(self, chat_model: ChatModel, settings: ChatSettings, saved: SavedReadings | None = None) -> None:
        self.chat_model, self.settings, self._saved = chat_model, settings, saved
        self.turns: list[Turn] = []
        self.document: Document | None = None
        self.memory = Memory(chat_model, settings.stream_window)
        self.is_streaming = settings.stream_window is not None
        self._context = sys.maxsize if self.is_streaming else chat_model.context  # what streams has no end
        self._answer_length = settings.answer_length(self._context)
        self._system: list[Message] = [{"role": "system", "content": settings.system}] if settings.system else []

    def clear(self) -> None:
        """Forget what was said; the document stays, and what has been read of it."""
        self.turns = []
        if self.is_streaming:
            self.memory.forget()
        else:
            self.memory.begin([*self._document_prefix(), 0])

    def release(self) -> None:
        """Give up keys and values; the next question reads the conversation again. A streaming memory is small."""
        if not self.is_streaming:
            self.memory.forget()

    def forget_document(self) -> None:
        """Begin anew without a document."""
        self.document = None
        self.clear()

    def set_document(self, name: str, text: str) -> list[str]:
        """Begin anew about a document, and return what there is to tell about that.

        Raises:
            DataError: it is longer than what fits, and is not to be cut.
        """
        document = Document(name=name, text=text, num_tokens=len(self.chat_model.tokens(text)))
        notes = [f"{name}: {document.num_tokens:,} tokens"]
        limit = self._room_for_document()
        if document.num_tokens > limit:
            beyond = (
                f"{name} has {document.num_tokens:,} tokens, and {limit:,} fit beside a question and an answer into "
                f"the context of {self._context:,}"
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
        """Read the document before any question, or fetch what was read of it earlier; return what there is to tell.

        A streaming memory reads it with the first question; so does any memory what is left once `stop` is set.
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

    def ask(self, question: str, progress: Progress | None = None) -> tuple[Answer, list[str]]:
        """Prepare an answer, and what there is to tell before it; `finish` takes it into the conversation.

        Raises:
            DataError: the question alone does not fit.
        """
        notes: list[str] = []
        if self.is_streaming and not self.turns:
            self.memory.forget()  # what an answer that was given up has left
        if self.is_streaming and self.memory.cache.get_seq_length():
            prompt = self.chat_model.continuation(self._system, self.turns[-1].answer, question)
        else:
            prompt, notes = self._fitting_prompt(question)
        room = min(self._answer_length, self._context - len(prompt))
        if room < self._answer_length:
            notes.append(f"{room:,} tokens of context are left for the answer")
        answer = Answer(self.chat_model, prompt, self.memory, self.settings, max_new_tokens=room, progress=progress)
        return answer, notes

    def finish(self, question: str, answer: Answer) -> None:
        """Take a question and its answer, whole or stopped, into the conversation."""
        self.turns.append(Turn(question=question, answer=answer.text))

    def usage(self) -> Usage:
        """How full the context is."""
        context = self.settings.stream_window or self.chat_model.context
        return Usage(
            used=min(self.memory.cache.get_seq_length(), context),
            context=context,
            document=0 if self.document is None else self.document.num_tokens - self.document.num_cut,
        )

    def messages(self) -> list[Message]:
        """What has been said, without the document."""
        return self._messages(self.turns, document="")

    def _messages(
        self, turns: Sequence[Turn], question: str | None = None, *, document: str | None = None
    ) -> list[Message]:
        """The messages as the model reads them, a new question last."""
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
        """What every first question begins with: two unlike ones are compared."""
        one, other = (self.chat_model.prompt(self._messages([], question)) for question in ("What?", "1"))
        return one[: shared_prefix(one, other)]

    def _fitting_prompt(self, question: str) -> tuple[list[int], list[str]]:
        """The whole conversation and a question, less the oldest turns if it is too long."""
        turns = list(self.turns)
        prompt = self.chat_model.prompt(self._messages(turns, question))
        while turns and len(prompt) + self._answer_length > self._context:
            del turns[0]
            prompt = self.chat_model.prompt(self._messages(turns, question))
        if len(prompt) >= self._context:
            raise DataError(
                f"the question makes {len(prompt):,} tokens with what stands before it, and the context of "
                f"{self._context:,} has no room for an answer; ask in fewer words"
            )
        forgotten = len(self.turns) - len(turns)
        self.turns = turns
        what = "question was" if forgotten == 1 else f"{forgotten} questions were"
        return prompt, [f"the oldest {what} forgotten to make room"] if forgotten else []
