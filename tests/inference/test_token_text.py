"""Text that comes token by token is the text of all tokens, whatever the decoder does at the beginning of a text."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from longlora.inference.answer import text_pieces

CODE = "Sure:\n\n    def f(x):\n        if x:\n            return 1\n\n  - élan 日本 🌊\n- end\n"


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As Llama 2's: a space is a sign of its own, unknown characters are bytes, and a text loses its first space."""
    words = [*"▁abcdefghijklmnopqrstuvwxyzSIN[]/:()-1", "\n", "▁▁", "▁▁▁▁", "▁d", "re", "▁re"]
    vocabulary = dict.fromkeys(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words])
    merges = [("▁", "▁"), ("▁▁", "▁▁"), ("▁", "d"), ("r", "e"), ("▁", "re")]
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def byte_level() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={sign: index for index, sign in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("make", [sentencepiece_like, byte_level])
@pytest.mark.parametrize("space", ["", " "])
def test_every_space_is_there_and_the_text_makes_the_same_tokens(make: type, space: str) -> None:
    tokenizer = make()
    asked = tokenizer("[INST]code[/INST]", add_special_tokens=False)["input_ids"]
    whole = tokenizer(f"[INST]code[/INST]{space}{CODE}", add_special_tokens=False)["input_ids"]
    assert whole[: len(asked)] == asked
    pieces = list(text_pieces(tokenizer, asked, whole[len(asked) :]))
    assert "".join(pieces) == space + CODE  # what the next question is asked after
    assert len(pieces) > 50 and not any("�" in piece for piece in pieces)


def test_a_character_that_does_not_come_whole_is_given_out_at_the_end() -> None:
    tokenizer = byte_level()
    asked, sea = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("why", "a🌊"))
    assert list(text_pieces(tokenizer, asked, sea[:-1])) == ["a", "�"]
    assert list(text_pieces(tokenizer, asked, [])) == []
