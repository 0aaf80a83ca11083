"""Answers to held-out questions at the end of fine-tuning: a person sees in them what a loss does not tell."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longlora.data import Conversation, encode_conversation, read_conversations
from longlora.data.encode import IGNORED, UnusableConversationError
from longlora.models.generation import plain_generation, plain_settings
from longlora.support.files import write_atomically

logger = logging.getLogger("longlora")

_MAX_NEW_TOKENS = 200
_SHOWN_CHARACTERS = 400
_TITLE = "# Held-out questions, answered greedily by the trained model\n\n"


def write_samples(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Iterable[Conversation],
    path: Path,
    *,
    count: int,
    context_length: int,
    dtype: torch.dtype,
) -> None:
    """Let the model answer the last question of some conversations, greedily; write answers beside the known ones.

    Why a conversation was passed over is told, and written where none was left.

    Args:
        model: as it was trained; its ordinary attention answers.
        tokenizer: with the chat template it was trained with.
        conversations: held out; those whose question does not fit are passed over.
        path: Markdown file to write.
        count: questions to answer.
        context_length: tokens of question and answer; documents are cut in their middle to fit.
        dtype: to compute in, as the training did; trained weights are float32 beside others of this type.
    """
    passed_over: Counter[str] = Counter()
    room = min(_MAX_NEW_TOKENS, context_length // 4)
    prompts = islice(_prompts(tokenizer, conversations, context_length - room, passed_over), count)
    sections = []
    model.eval()
    for messages, prompt in prompts:
        with torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32):
            answer = _answer(model, tokenizer, prompt, room)
        question, known = messages[-2]["content"].strip() or "(an empty question)", messages[-1]["content"].strip()
        asked = question.splitlines()[-1]
        sections.append(f"## {asked}\n\n**The model:** {answer}\n\n**The data:** {known}\n")
        logger.info("asked: %s\n  answered: %s", _shortened(asked), _shortened(answer))
    reasons = "; ".join(f"{number} conversations {reason}" for reason, number in passed_over.items())
    if not sections:
        logger.warning("no held-out question was answered: %s", reasons or "none ends with a question and an answer")
    elif reasons:
        logger.info("held-out questions passed over: %s", reasons)
    nothing = f"None was answered: {reasons or 'none ends with a question and an answer'}.\n"
    write_atomically(path, _TITLE + ("\n".join(sections) or nothing))


def held_out_conversations(source: str | tuple[str, ...], split: str, *, most: int) -> Iterator[Conversation]:
    """Read conversations that end with a question and its answer, of the first so many of a held-out set."""
    for _, conversation in islice(read_conversations(source, split=split), most):
        roles = [message["role"] for message in conversation.messages]
        if roles[-2:] == ["user", "assistant"]:
            yield conversation


def _prompts(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Iterable[Conversation],
    context_length: int,
    passed_over: Counter[str],
) -> Iterator[tuple[tuple[dict[str, str], ...], list[int]]]:
    """Give each conversation's messages, and the tokens before its last answer, shortened as in training."""
    for conversation in conversations:
        # The known answer may be long and is not to be read; a word in its place shows where an answer begins.
        messages = (*conversation.messages[:-1], {"role": "assistant", "content": "Yes"})
        try:
            encoded = encode_conversation(tokenizer, messages, context_length=context_length, tools=conversation.tools)
        except UnusableConversationError as error:
            passed_over[str(error)] += 1
            continue
        labels = encoded.labels
        end = max(index for index, label in enumerate(labels) if label != IGNORED)
        begin = next((index + 1 for index in range(end, -1, -1) if labels[index] == IGNORED), 0)
        yield conversation.messages, encoded.input_ids[:begin]


@torch.inference_mode()
def _answer(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, prompt: list[int], max_new_tokens: int
) -> str:
    tokens = torch.tensor([prompt], device=model.device)  # (1, prompt)
    settings = plain_settings(model, tokenizer, max_new_tokens=max_new_tokens)
    with plain_generation(model):
        written = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), generation_config=settings)
    return tokenizer.decode(written[0, len(prompt) :], skip_special_tokens=True).strip()


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
