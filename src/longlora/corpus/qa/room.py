"""How much of a document fits one prompt."""

from longlora.corpus.qa.sections import TokenCounter
from longlora.corpus.qa.settings import CHAT_TOKENS, Settings
from longlora.corpus.qa.templates import PromptSet, Template
from longlora.errors import ConfigError

HEADING_TOKENS = 16
"""Left free for the line above each section's notes."""

SMALLEST_ROOM = 128
"""Tokens of text below which it makes no sense to ask about it."""

_LONGEST_WHAT = "notes on all 9999 sections of a paper, in order, with passages copied from it"


def material_room(prompts: PromptSet, settings: Settings, counter: TokenCounter) -> int:
    """Tokens of a document, or of notes, that every prompt has room for beside its own words and the reply.

    Raises:
        ConfigError: too few, or too few to put two sections' notes together.
    """
    taken = [
        _words(prompts.notes, counter) + settings.notes_tokens,
        _words(prompts.condense, counter) + settings.notes_tokens,
        *(_words(template, counter) + settings.reply_tokens for template in prompts.questions),
    ]
    if settings.judge:  # it reads a whole reply of pairs and gives its verdicts
        taken.append(_words(prompts.judge, counter) + 2 * settings.reply_tokens)
    room = settings.window - CHAT_TOKENS - max(taken)
    needed = max(SMALLEST_ROOM, 2 * (settings.notes_tokens + HEADING_TOKENS))
    if room < needed:
        raise ConfigError(
            f"--window {settings.window} must leave at least {needed} tokens for the text, and leaves {max(0, room)}: "
            f"prompts and replies may take {max(taken) + CHAT_TOKENS}; lower --reply-tokens or --notes-tokens, or "
            "choose a model with a larger window"
        )
    return room


def _words(template: Template, counter: TokenCounter) -> int:
    empty = template.fill(material="", count=99, what=_LONGEST_WHAT, part=_LONGEST_WHAT, pairs="")
    return counter.count(empty)
