"""What a user is told before calls are sent, and after."""

from collections import Counter
from pathlib import Path
from typing import Any

from longlora.corpus.qa.estimate import ASSUMED_TOKENS_PER_SECOND, Estimate
from longlora.corpus.qa.journal import Journal
from longlora.corpus.qa.run import Sending, Summary, journal_path

_MOST_FAILURES_SHOWN = 5


def estimate_text(estimate: Estimate, journal: Journal, sending: Sending) -> str:
    """Calls, tokens, price and time, each as the most that is to be expected."""
    prices = sending.limits.prices
    steps = ", ".join(f"{count:,} {step}" for step, count in sorted(estimate.calls.items()))
    lines = [
        f"{estimate.num_documents:,} documents of {estimate.document_tokens:,} tokens; "
        f"{estimate.num_calls:,} calls to make ({steps}), {len(journal):,} in the journal",
        f"at most {estimate.prompt_tokens:,} tokens to read and {estimate.completion_tokens:,} to write",
    ]
    cost = estimate.cost(prices)
    if prices is None or cost is None:
        lines.append("cost not known without --price-in and --price-out")
    else:
        spent = prices.cost(journal.spent.prompt_tokens, journal.spent.completion_tokens)
        lines.append(f"at most {cost:,.2f} at the given prices, after {spent:,.2f} so far")
    known = journal.seconds_per_call
    seconds = estimate.seconds(pace=sending.pace, concurrency=sending.concurrency, seconds_per_call=known)
    basis = (
        f"if each of {sending.concurrency} calls at once writes {ASSUMED_TOKENS_PER_SECOND:g} tokens in a second"
        if known is None
        else f"at {known:.1f} s a call so far, {sending.concurrency} at once"
    )
    lines.append(f"about {_duration(seconds)} {basis}")
    limits = sending.limits
    if limits.max_tokens is not None:
        lines.append(f"stops before {limits.max_tokens:,} tokens are exceeded")
    if limits.max_cost is not None:
        lines.append(f"stops before {limits.max_cost:,.2f} is exceeded")
    return "\n".join(lines)


def summary_text(summary: Summary, sending: Sending, out: Path) -> str:
    """What was written, what was dropped and why, what is left."""
    values = summary_to_dict(summary, sending)
    lines = [f"{summary.num_records:,} records from {summary.num_documents:,} documents"]
    lines[0] += f", written to {out}" if summary.num_records else "; nothing is written"
    if summary.dropped:
        lines.append(f"dropped {summary.dropped.total():,}: {_counts(summary.dropped)}")
    if summary.repeated:
        lines.append(f"{len(summary.repeated):,} documents came twice: {', '.join(summary.repeated[:5])}")
    cost = "" if values["cost"] is None else f", {values['cost']:,.2f} at the given prices"
    lines.append(f"{summary.spent.prompt_tokens:,} tokens read and {summary.spent.completion_tokens:,} written{cost}")
    if summary.failures:
        lines.append(f"{summary.failures.total():,} calls came to nothing: {_counts(summary.failures)}")
    if not summary.is_complete:
        why = f"stopped, {summary.stopped_by}" if summary.stopped_by else "not complete"
        lines.append(
            f"{why}: at least {summary.num_unanswered:,} calls have no reply; the same command asks them again "
            f"(journal: {journal_path(out)})"
        )
    return "\n".join(lines)


def summary_to_dict(summary: Summary, sending: Sending) -> dict[str, Any]:
    """The same as plain values."""
    prices, spent = sending.limits.prices, summary.spent
    return {
        "num_records": summary.num_records,
        "num_documents": summary.num_documents,
        "num_answered": summary.num_answered,
        "num_unanswered": summary.num_unanswered,
        "is_complete": summary.is_complete,
        "dropped": dict(summary.dropped.most_common()),
        "repeated": summary.repeated,
        "failures": dict(summary.failures.most_common()),
        "stopped_by": summary.stopped_by,
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "cost": prices.cost(spent.prompt_tokens, spent.completion_tokens) if prices else None,
    }


def _counts(counts: Counter[str]) -> str:
    shown = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common(_MOST_FAILURES_SHOWN))
    return shown + (", …" if len(counts) > _MOST_FAILURES_SHOWN else "")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
