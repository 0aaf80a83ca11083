"""Which tokens end an answer: what a trained model writes last, and where generation has to stop."""

from transformers import PreTrainedTokenizerBase

from longlora.data.encode import IGNORED, encode_conversation

_NO_LIMIT = 1 << 62
_ANSWERED = ({"role": "user", "content": "Who is it?"}, {"role": "assistant", "content": "It is I."})


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that close a learned answer, in the order in which they are learned; the first alone ends the turn.

    Taken from the labels of a short conversation, so that they are those that training teaches: all tokens of the added
    vocabulary after the answer's last word. White space between and after them (ChatML writes a line's end after
    `<|im_end|>`) is learned too, and no stop. Empty where the template ends an answer with ordinary text or not at all.

    Args:
        tokenizer: with a chat template; `ensure_chat_template` gives it the paper's if it has none.

    Raises:
        ConfigError: the template does not serve for answers.
    """
    encoded = encode_conversation(tokenizer, _ANSWERED, context_length=_NO_LIMIT)
    known = {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids}
    ends: list[int] = []
    for token in reversed([label for label in encoded.labels if label != IGNORED]):
        if token in known:
            ends.insert(0, token)
        elif tokenizer.decode([token]).strip():
            break
    return tuple(ends)
