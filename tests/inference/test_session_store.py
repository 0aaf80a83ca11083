from longlora.cli.chat import read_document
from longlora.inference.chat_model import ChatModel, ChatSettings
from longlora.inference.conversation import Chat
from longlora.inference.sessions import NUM_REMEMBERED, Session, SessionStore


def store_of(chat_model: ChatModel) -> SessionStore:
    settings = ChatSettings(max_new_tokens=6)

    def begin() -> Session:
        return Session(Chat(chat_model, settings), lambda path, stop: read_document(path))

    return SessionStore(begin)


def say(session: Session, question: str) -> int:
    """Ask, and tell how many tokens had to be read."""
    answer, _ = session.conversation.ask(question)
    list(answer)
    session.conversation.finish(question, answer)
    return answer.num_read


def test_everyone_has_a_room_of_their_own(chat_model: ChatModel) -> None:
    store = store_of(chat_model)
    say(store.enter("ann"), "Where?")
    say(store.enter("bob"), "Why?")
    assert [turn.question for turn in store.enter("ann").conversation.turns] == ["Where?"]
    assert [turn.question for turn in store.enter("bob").conversation.turns] == ["Why?"]
    store.leave("ann")
    store.leave("nobody")
    assert len(store) == 1
    assert store.enter("ann").conversation.turns == []


def test_only_the_latest_keep_what_they_read_and_the_others_lose_nothing_else(chat_model: ChatModel) -> None:
    store = store_of(chat_model)
    names = ["ann", *map(str, range(NUM_REMEMBERED))]
    for name in names:
        say(store.enter(name), "Where?")
    assert [store._sessions[name].conversation.usage().used > 0 for name in names] == [False] + [True] * NUM_REMEMBERED
    again, fresh = store.enter("ann"), store_of(chat_model).enter("new")
    say(fresh, "Where?")
    num_read = say(again, "Why?")
    say(fresh, "Why?")
    assert num_read > len("[INST]Where?[/INST]")  # all of it, once more
    assert again.conversation.turns == fresh.conversation.turns


def test_leaving_ends_the_answer_that_is_being_written(chat_model: ChatModel) -> None:
    store = store_of(chat_model)
    session = store.enter("ann")
    answer, _ = session.conversation.ask("Where?")
    session.stopping = answer.stopping
    store.leave("ann")
    assert answer.stopped
