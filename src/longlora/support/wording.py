"""Jinja templates, and numbers, values and secrets formatted for people."""

import base64
import re
import reprlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def templates(folder: str, *, finalize: Callable[[Any], Any] | None = None) -> "Environment":
    """Return a jinja2 environment for a folder of the package, such as `report/templates`.

    HTML templates (`*.html.j2`) are escaped automatically. `finalize` is applied to every printed value.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("longlora", folder),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def short_number(value: float) -> str:
    """Format a large number with three digits, as in 1.23 M."""
    rounded = float(f"{value:.3g}")  # first, or 999.9 M would be 1e+03 M
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if rounded >= size:
            return f"{rounded / size:.3g} {letter}"
    return f"{value:g}"


def shortened(text: str, *, limit: int) -> str:
    """Replace the middle of a text longer than `limit` characters by an ellipsis."""
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]} … {text[len(text) - half :]}"


def short_repr(value: Any) -> str:
    """Return the `repr` of a value, limited to about 200 characters and in depth."""
    return shortened(_SHORT.repr(value), limit=200)


def without_credentials(text: str, *, known: str = "") -> str:
    """Redact what looks like a key, a password or an encoded credential, and always the `known` one."""
    if known:
        for secret in (known, base64.b64encode(known.encode()).decode().rstrip("=")):
            text = text.replace(secret, _REDACTED)
    for pattern in _CREDENTIALS:
        text = pattern.sub(_REDACTED, text)
    return text


_REDACTED = "[redacted]"
_CREDENTIALS = [
    re.compile(r"(?<=://)[^\s/@]+(?=@)"),  # user name and password in a URL
    re.compile(r"(?i)(?<=\bbasic )[^\s'\",;}]{6,}|(?<=\bbearer )[^\s'\",;}]{6,}"),
    re.compile(
        r"(?i)\b(?:api[-_ ]?key|secret|password|authorization)['\"]?\s?[:=]\s?['\"]?(?!basic|bearer)[^\s'\",;}]+"
    ),
    re.compile(r"\b(?:sk|pk|hf|ghp|gsk|xai)[-_][\w-]{8,}"),
    re.compile(r"(?<![\w+/])(?=[^\s]*[a-z])(?=[^\s]*[A-Z])(?=[^\s]*\d)[A-Za-z0-9+/]{32,}={0,2}"),  # base64
]

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 160
