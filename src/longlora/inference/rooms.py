"""Several conversations with one model, kept apart, in bounded memory."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from longlora.inference.answer import Answer
from longlora.inference.conversation import Conversation, Usage

NUM_REMEMBERED = 4


@dataclass(kw_only=True)
class Room:
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


class Rooms:
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
        self._rooms: OrderedDict[str, Room] = OrderedDict()

    def enter(self, key: str) -> Room:
        """Find a visitor's room, or open one, before the model is used there."""
        if key not in self._rooms:
            self._rooms[key] = Room(conversation=self._begin())
        self._rooms.move_to_end(key)
        for other in list(self._rooms.values())[: -self._num_remembered]:
            other.conversation.release()
        return self._rooms[key]

    def usage_at_first(self) -> Usage:
        """How full the context is where nothing has been said."""
        return self._begin().usage()

    def find(self, key: str) -> Room | None:
        """Find a visitor's room without using it."""
        return self._rooms.get(key)

    def leave(self, key: str) -> None:
        """Close a room, and end what is being said in it."""
        room = self._rooms.pop(key, None)
        if room is not None:
            room.stop()

    def __len__(self) -> int:
        return len(self._rooms)
