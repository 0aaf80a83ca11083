from longlora.inference.conversation import Conversation
from longlora.inference.prefix_cache import WholeMemory
from longlora.inference.rooms import Room, Rooms
from longlora.inference.settings import ChatSettings
from longlora.inference.speaker import Speaker


def rooms_of(speaker: Speaker, num_remembered: int = 2) -> Rooms:
    settings = ChatSettings(max_new_tokens=6)
    return Rooms(lambda: Conversation(speaker, settings, WholeMemory(speaker.model)), num_remembered)


def say(room: Room, question: str) -> int:
    """Ask, and tell how many tokens had to be read."""
    answer, _ = room.conversation.ask(question)
    list(answer)
    room.conversation.finish(question, answer)
    return answer.num_read


def test_everyone_has_a_room_of_their_own(speaker: Speaker) -> None:
    rooms = rooms_of(speaker)
    say(rooms.enter("ann"), "Where?")
    say(rooms.enter("bob"), "Why?")
    assert [turn.question for turn in rooms.enter("ann").conversation.turns] == ["Where?"]
    assert [turn.question for turn in rooms.enter("bob").conversation.turns] == ["Why?"]
    rooms.leave("ann")
    rooms.leave("nobody")
    assert rooms.find("ann") is None and len(rooms) == 1
    assert rooms.enter("ann").conversation.turns == []


def test_only_the_latest_keep_what_they_read_and_the_others_lose_nothing_else(speaker: Speaker) -> None:
    rooms = rooms_of(speaker)
    for name in ("ann", "bob", "cyd"):
        say(rooms.enter(name), "Where?")
    used = {name: rooms._rooms[name].conversation.usage().used for name in ("ann", "bob", "cyd")}
    assert used["ann"] == 0 and used["bob"] > 0 and used["cyd"] > 0
    again, fresh = rooms.enter("ann"), rooms_of(speaker).enter("new")
    say(fresh, "Where?")
    num_read = say(again, "Why?")
    say(fresh, "Why?")
    assert num_read > len("[INST]Where?[/INST]")  # all of it, once more
    assert again.conversation.turns == fresh.conversation.turns


def test_leaving_ends_the_answer_that_is_being_written(speaker: Speaker) -> None:
    rooms = rooms_of(speaker)
    room = rooms.enter("ann")
    room.stop()  # nothing is being said yet
    room.answer, _ = room.conversation.ask("Where?")
    rooms.leave("ann")
    assert room.answer.stopped and room.reading.is_set()
