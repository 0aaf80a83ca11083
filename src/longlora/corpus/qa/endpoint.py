"""Ask a model through OpenAI's chat completions API: vLLM, `transformers serve`, llama.cpp, or a hosted service."""

import json
import logging
import os
import re
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import openai
from pydantic import BaseModel

from longlora.corpus.qa.asking import Begin
from longlora.corpus.qa.calls import Answer, Call, RefusedError, UnansweredError
from longlora.corpus.qa.qa_settings import require
from longlora.corpus.qa.replies import Pairs, Verdicts
from longlora.errors import ConfigError
from longlora.support.wording import shortened, without_credentials

logger = logging.getLogger("longlora")

_REFUSED = {401, 402, 403, 404, 405}
_CONNECT_SECONDS = 10.0  # a busy server is slow to answer, not to connect
_MAY_HAVE_WORKED = {408, 504}  # timeouts while the model may have been generating
_NEVER_CONNECTED = (".connect_tcp.failed", ".start_tls.failed")
_FORMS: dict[str, type[BaseModel]] = {"questions": Pairs, "judge": Verdicts}
# Optional parameters, with what a server's error says if it does not support them.
_OPTIONAL = {
    "temperature": r"'temperature'",
    "seed": r"'seed'",
    "response_format": r"response_format|schema|structured|guided|grammar",
}

_SENT: ContextVar[tuple[Call, Begin]] = ContextVar("sent")


class _HttpClient(openai.DefaultAsyncHttpxClient):
    """An HTTP client that makes every request an attempt, including the openai client's own retries."""

    async def send(self, request: Any, **options: Any) -> Any:
        call, begin = _SENT.get()
        async with begin() as attempt:

            async def trace(event: str, info: dict[str, Any]) -> None:
                if event.endswith(_NEVER_CONNECTED):
                    attempt.may_be_charged = False

            request.extensions["trace"] = trace
            response = await super().send(request, **options)
            if response.status_code < 400:
                attempt.answer = read_answer(response.text, call.model)
            else:
                attempt.failure = f"status {response.status_code}"
                attempt.may_be_charged = response.status_code in _MAY_HAVE_WORKED
        if response.status_code >= 400 and "insufficient_quota" in response.text:
            response.headers["x-should-retry"] = "false"  # otherwise the openai client treats it as a rate limit
        return response


class Endpoint:
    """Sends calls to a server; the openai client retries after transient errors.

    A parameter that the server rejects is sent under another name or left out from then on, with a warning. Without
    `response_format`, only the prompt determines the format of a reply.

    Raises:
        ConfigError: the address is invalid, or there is no key for OpenAI's own server.
    """

    def __init__(self, *, base_url: str | None, timeout_seconds: float, attempts: int = 6) -> None:
        key = os.environ.get("OPENAI_API_KEY")
        url = base_url or os.environ.get("OPENAI_BASE_URL")
        if not key and not url:
            raise ConfigError("set OPENAI_API_KEY, or --base-url for your own server (http://localhost:8000/v1)")
        _check_url(url)
        require("be above 0", timeout=timeout_seconds)
        require("be at least 1", attempts=attempts)
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=key or "none",  # the client requires a key even if the server does not
            max_retries=attempts - 1,
            timeout=openai.Timeout(timeout_seconds, connect=min(timeout_seconds, _CONNECT_SECONDS)),
            http_client=_HttpClient(),
        )
        self._timeout_seconds = timeout_seconds
        self._attempts = attempts
        self._limit_name = "max_tokens"
        self._left_out: set[str] = set()

    async def answer(self, call: Call, begin: Begin) -> None:
        """Send a call; see `asking.Answerer` for the errors."""
        _SENT.set((call, begin))
        num_unreadable = 0
        while True:
            sent = self._arguments(call)
            try:
                # Raw, as the client would build an object from anything that a server sends.
                await self._client.chat.completions.with_raw_response.parse(**sent)
                return
            except UnansweredError:
                num_unreadable += 1
                if num_unreadable == self._attempts:
                    raise
            except openai.APIStatusError as error:
                if not self._adapt(error, sent):
                    message = f"status {error.status_code}: {_short(str(error.body or error))}"
                    is_refused = error.status_code in _REFUSED or error.code == "insufficient_quota"
                    raise (RefusedError if is_refused else UnansweredError)(message) from error
            except openai.APITimeoutError as error:
                raise UnansweredError(f"no reply within {self._timeout_seconds:g} s") from error
            except openai.APIConnectionError as error:
                raise UnansweredError(_short(f"{error} ({error.__cause__})")) from error

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
        if call.step in _FORMS:
            arguments["response_format"] = _FORMS[call.step]
        return {name: value for name, value in arguments.items() if name not in self._left_out}

    def _adapt(self, error: openai.APIStatusError, sent: dict[str, Any]) -> bool:
        """Leave out or rename a parameter that the server rejects; return whether to send the call again.

        Calls in progress with the same parameter also end up here, when it has already been left out.
        """
        message = str(error.body or error)
        if error.status_code not in (400, 422):
            return False
        if "max_tokens" in sent and "max_completion_tokens" in message and "instead" in message:
            if self._limit_name == "max_tokens":
                logger.warning("the server expects max_completion_tokens instead of max_tokens; using it from now on")
            self._limit_name = "max_completion_tokens"
            return True
        for name, pattern in _OPTIONAL.items():
            if name in sent and (error.param == name or re.search(pattern, message, re.IGNORECASE)):
                if name not in self._left_out:
                    reason = _short(message)
                    logger.warning("the server rejects %s (%s); it is left out from now on", name, reason)
                self._left_out.add(name)
                return True
        return False


def read_answer(body: str, model: str) -> Answer:
    """Parse a chat completion.

    Raises:
        UnansweredError: it is not one: not JSON, or without a choice.
    """
    try:
        value = json.loads(body)
        choice = value["choices"][0]
        content = choice["message"].get("content")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        message = f"the reply is not a chat completion ({type(error).__name__}): {_short(body)}"
        raise UnansweredError(message) from error
    usage = value.get("usage") if isinstance(value.get("usage"), dict) else {}
    return Answer(
        # Half a surrogate pair is valid JSON, but cannot be written to a file.
        text=content.encode("utf-8", "replace").decode() if isinstance(content, str) else "",
        finish=choice.get("finish_reason"),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        model=str(value.get("model") or model),
    )


def _check_url(url: str | None) -> None:
    try:
        parts = urlsplit(url or "http://unset")
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ConfigError(f"--base-url must be an address such as http://localhost:8000/v1, found {url!r}")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _short(text: str) -> str:
    """Return a server's message as one short line for the journal, without credentials that it may repeat."""
    line = without_credentials(" ".join(text.split()), known=os.environ.get("OPENAI_API_KEY", ""))
    return shortened(line, limit=200)
