"""A model behind a server that speaks OpenAI's chat completions: vLLM, `transformers serve`, llama.cpp, hosted ones."""

import asyncio
import json
import logging
import math
import os
import time
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from longlora.corpus.qa.calls import Answer, Call, PassingError, RefusedError, RejectedError
from longlora.errors import ConfigError

logger = logging.getLogger("longlora")

API_KEY = "OPENAI_API_KEY"
_BASE_URL = "OPENAI_BASE_URL"

_PASSING = {408, 409, 425, 429}  # and all from 500 on
_REFUSED = {401, 402, 403, 404, 405}
_MAY_HAVE_WORKED = {408, 504}  # the time ran out while the model was at work
_NEVER_CONNECTED = {"ConnectError", "ConnectTimeout"}  # httpx' names; which httpx is the openai package's affair
_OPTIONAL = ("temperature", "seed")


class Endpoint:
    """Sends calls to a server, each once; repeating them is the caller's affair.

    A server that does not know `max_tokens`, `temperature` or `seed` says so, and a warning tells that they are sent
    under another name or not at all from then on.

    Raises:
        ConfigError: the openai package is missing, the address is none, or OpenAI's own server has no key.
    """

    def __init__(self, *, base_url: str | None, timeout_seconds: float) -> None:
        if find_spec("openai") is None:
            raise ConfigError("asking a server needs the openai package: pip install 'longlora[corpus]'")
        from openai import AsyncOpenAI

        key = os.environ.get(API_KEY)
        if not key and not (base_url or os.environ.get(_BASE_URL)):
            raise ConfigError(f"set {API_KEY}, or --base-url for a server of your own (http://localhost:8000/v1)")
        _check_url(base_url or os.environ.get(_BASE_URL))
        if timeout_seconds <= 0:
            raise ConfigError(f"--timeout must be above 0, got {timeout_seconds}")
        # A server of one's own asks for no key, but the client does.
        self._client = AsyncOpenAI(base_url=base_url, api_key=key or "none", max_retries=0, timeout=timeout_seconds)
        self._timeout_seconds = timeout_seconds
        self._limit_name = "max_tokens"
        self._left_out: set[str] = set()

    async def answer(self, call: Call) -> Answer:
        """Send a call; see `calls.Answerer` for what it raises."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        sent = self._arguments(call)
        try:
            # The client's own limit is on each read: a server that sends a byte now and then would hold it for ever.
            async with asyncio.timeout(self._timeout_seconds):
                body = await self._send(sent)
        except (TimeoutError, APITimeoutError) as error:
            message = f"no reply within {self._timeout_seconds:g} s"
            raise PassingError(message, may_be_charged=True) from error
        except APIStatusError as error:
            if self._adapt(error, sent):
                raise PassingError(str(error), wait_seconds=0.0) from error
            raise _fault(error) from error
        except APIConnectionError as error:
            cause = error.__cause__
            reached = type(cause).__name__ not in _NEVER_CONNECTED
            raise PassingError(f"{error} ({cause})", may_be_charged=reached) from error
        return read_answer(body, call.model)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _arguments(self, call: Call) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "model": call.model,
            "messages": [{"role": "user", "content": call.prompt}],
            self._limit_name: call.max_tokens,
            "temperature": call.temperature,
            "seed": call.seed,
        }
        return {name: value for name, value in arguments.items() if name not in self._left_out}

    async def _send(self, arguments: dict[str, Any]) -> str:
        # Raw: the client makes an object of anything that a server sends, and we want to see whether it is one.
        response = await self._client.chat.completions.with_raw_response.create(**arguments)
        return response.text

    def _adapt(self, error: Any, sent: dict[str, Any]) -> bool:
        """Leave out, or rename, what the server says it does not know; whether the call is worth sending again.

        Calls that were under way with the same parameter come here too, when it is left out already.
        """
        message = str(error.body or error)
        if error.status_code not in (400, 422):
            return False
        if "max_tokens" in sent and "max_completion_tokens" in message and "instead" in message:
            if self._limit_name == "max_tokens":
                logger.warning("the server takes max_completion_tokens instead of max_tokens; it is sent from now on")
            self._limit_name = "max_completion_tokens"
            return True
        for name in _OPTIONAL:
            if name in sent and (error.param == name or f"'{name}'" in message):
                if name not in self._left_out:
                    logger.warning(
                        "the server does not take %s (%s); it is left out from now on", name, _short(message)
                    )
                self._left_out.add(name)
                return True
        return False


def read_answer(body: str, model: str) -> Answer:
    """Read a chat completion.

    Raises:
        PassingError: it is none: no JSON, or no choice in it.
    """
    try:
        value = json.loads(body)
        choice = value["choices"][0]
        content = choice["message"].get("content")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        message = f"the reply is no chat completion ({type(error).__name__}): {_short(body)}"
        raise PassingError(message, may_be_charged=True) from error
    usage = value.get("usage") if isinstance(value.get("usage"), dict) else {}
    return Answer(
        # Half a surrogate pair passes as JSON, but no file takes it.
        text=content.encode("utf-8", "replace").decode() if isinstance(content, str) else "",
        finish=choice.get("finish_reason"),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        model=str(value.get("model") or model),
    )


def retry_after(headers: Any) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, or `Retry-After`, a number or a date (RFC 9110, 10.2.3)."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _check_url(url: str | None) -> None:
    if not url:
        return
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ConfigError(f"--base-url must be an address as in http://localhost:8000/v1, found {url!r}")


def _fault(error: Any) -> Exception:
    status = error.status_code
    message = f"status {status}: {_short(str(error.body or error))}"
    if status in _REFUSED or error.code == "insufficient_quota":
        return RefusedError(message)
    if status in _PASSING or status >= 500:
        wait = retry_after(error.response.headers)
        return PassingError(message, wait_seconds=wait, may_be_charged=status in _MAY_HAVE_WORKED)
    return RejectedError(message)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:199] + "…"
