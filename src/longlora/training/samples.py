"""Answers to held-out questions at the end of fine-tuning: a person sees in them what a loss does not tell."""

import logging
from itertools import islice
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longlora.checkpoint import write_atomically
from longlora.data import Conversation, encode_conversation, end_of_turn, read_conversations
from longlora.data.encode import IGNORED, UnusableConversationError

logger = logging.getLogger("longlora")

_MAX_NEW_TOKENS = 200
_SHOWN_CHARACTERS = 400


def write_samples(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[Conversation],
    path: Path,
    *,
    context_length: int,
) -> None:
    """Let the model answer the last question of each conversation, greedily, and write answers beside the known ones.

    Args:
        model: as it was trained; its ordinary attention answers.
        tokenizer: with the chat template it was trained with.
        conversations: held out; those that cannot be encoded are left out.
        path: Markdown file to write.
        context_length: tokens of question and answer; documents are cut in their middle to fit.
    """
    sections = []
    model.eval()
    for conversation in conversations:
        question = conversation.messages[-2]["content"] if len(conversation.messages) > 1 else ""
        try:
            answer = _answer(model, tokenizer, conversation, context_length)
        except UnusableConversationError:
            continue
        known = conversation.messages[-1]["content"]
        asked = question.strip().splitlines()[-1] if question.strip() else ""
        sections.append(f"## {asked}\n\n**The model:** {answer}\n\n**The data:** {known.strip()}\n")
        logger.info("asked: %s\n  answered: %s", _shortened(asked), _shortened(answer))
    write_atomically(path, "# Held-out questions, answered greedily by the trained model\n\n" + "\n".join(sections))


def held_out_conversations(source: str | tuple[str, ...], split: str, count: int) -> list[Conversation]:
    """Read the first conversations of a held-out set that end with an answer."""
    found = (conversation for _, conversation in read_conversations(source, split=split))
    return list(islice((c for c in found if c.messages[-1]["role"] == "assistant"), count))


@torch.inference_mode()
def _answer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    context_length: int,
) -> str:
    room = min(_MAX_NEW_TOKENS, context_length // 4)
    # Encoded with its answer, so that it is shortened as in training; what precedes the last answer is the prompt.
    encoded = encode_conversation(
        tokenizer, conversation.messages, context_length=context_length - room, tools=conversation.tools
    )
    labels = encoded.labels
    end = max(index for index, label in enumerate(labels) if label != IGNORED)
    begin = next((index + 1 for index in range(end, -1, -1) if labels[index] == IGNORED), 0)
    prompt = torch.tensor([encoded.input_ids[:begin]], device=model.device)  # (1, prompt)
    written = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=room,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        eos_token_id=list(end_of_turn(tokenizer)) or tokenizer.eos_token_id,
    )
    return tokenizer.decode(written[0, begin:], skip_special_tokens=True).strip()


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
