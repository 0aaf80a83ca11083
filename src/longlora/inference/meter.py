"""How full the context is and how fast an answer came, in words."""

from longlora.inference.answer import Answer
from longlora.inference.conversation import Usage

_WIDTH = 24  # characters of the bar


def usage_line(usage: Usage) -> str:
    """The bar, and the numbers behind it."""
    share = usage.used / usage.context
    filled = min(_WIDTH, round(share * _WIDTH))
    parts = [f"{'█' * filled}{'░' * (_WIDTH - filled)} {usage.used:,} of {usage.context:,} tokens ({share:.0%})"]
    if usage.document:
        parts.append(f"document {usage.document:,}")
    return " · ".join(parts)


def answer_line(answer: Answer) -> str:
    """What an answer took."""
    parts = [f"read {answer.num_read:,} tokens"]
    if answer.num_reused:
        parts.append(f"had {answer.num_reused:,} in memory")
    if answer.seconds_to_first_token is not None:
        parts.append(f"first word after {answer.seconds_to_first_token:.1f} s")
        writing = answer.seconds - answer.seconds_to_first_token
        if answer.num_written > 1 and writing > 0:
            parts.append(f"{(answer.num_written - 1) / writing:,.0f} tokens/s")
    if answer.stopped:
        parts.append("stopped")
    elif not answer.finished:
        parts.append("cut off at the longest length allowed")
    return " · ".join(parts)
