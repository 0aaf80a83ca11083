"""Check clients' requests in OpenAI's format, and translate them for transformers' server.

transformers' server ignores unknown parameters, and answers with status 500 to what it cannot do. Here an unsupported
parameter is refused, unless its value is the default (`n=1`, `logprobs=false`).
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from starlette.exceptions import HTTPException
from transformers import PreTrainedTokenizerBase

DEFAULT_ANSWER = 1024  # tokens, if the client sets no maximum and the context has room

# Not supported, each with the values (as JSON) that have no effect.
_NOT_OFFERED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("audio", "function_call", "prediction", "reasoning_effort", "top_logprobs", "verbosity"), ()),
    "web_search_options": (),
    **dict.fromkeys(("n", "best_of"), ("1",)),
    **dict.fromkeys(("logprobs", "echo", "store"), ("false",)),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), ("0", "0.0")),
    "functions": ("[]",),
    "logit_bias": ("{}",),
    "modalities": ('["text"]',),
    "parallel_tool_calls": ("true",),
    "response_format": ('{"type": "text"}',),
    "service_tier": ('"auto"', '"default"'),
    "suffix": ('""',),
    "tool_choice": ('"auto"',),
}
# Labels for the provider's own records.
_WITHOUT_EFFECT = ("user", "metadata", "safety_identifier", "prompt_cache_key")

Stop = Annotated[str, Field(min_length=1)]


class RequestError(HTTPException):
    """A refused request; becomes an error in OpenAI's format."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(status, message)
        self.param, self.code = param, code


class _Checked(BaseModel, extra="forbid", strict=True):
    pass


class _StreamOptions(_Checked):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Request(_Checked):
    """The fields of both kinds of request."""

    model: str
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**32)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class _Part(_Checked):
    type: Literal["text"]
    text: str


def _object(arguments: Any) -> Any:
    return json.loads(arguments or "{}") if isinstance(arguments, str) else arguments


class _Function(BaseModel, extra="allow", strict=True):
    name: str
    arguments: Annotated[dict[str, Any], BeforeValidator(_object)]  # templates take an object; clients send JSON


class _ToolCall(BaseModel, extra="allow", strict=True):
    function: _Function


class _Message(BaseModel, extra="ignore", strict=True):
    # Other fields are ignored: clients send answers back with everything that came with them, mostly None.
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    name: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None

    def plain(self) -> dict[str, Any]:
        """Return the message as chat templates take it, with its text in one piece."""
        parts = self.content or ""
        content = parts if isinstance(parts, str) else "\n".join(part.text for part in parts)
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": content}
        if self.tool_calls:
            message |= {"content": "", "tool_calls": [call.model_dump() for call in self.tool_calls]}
        return message | ({"tool_call_id": self.tool_call_id} if self.tool_call_id else {})


class _Chat(_Request):
    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class _Completion(_Request):
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]


Kind = TypeVar("Kind", bound=_Request)


@dataclass(frozen=True, kw_only=True)
class Translator:
    """Translates requests for one model into those of transformers' server."""

    name: str  # the model's, for clients
    context_length: int  # tokens of prompt and answer together
    tokenizer: PreTrainedTokenizerBase  # the model's, with its chat template
    generation: dict[str, Any]  # the model's generation settings, as in its generation_config.json

    def chat(self, body: Any) -> dict[str, Any]:
        """Check and translate a request for the next message of a conversation.

        Raises:
            RequestError: it is malformed, asks for something unsupported, or does not fit into the context.
        """
        request = _checked(_Chat, body)
        messages = [message.plain() for message in request.messages]
        template = request.chat_template_kwargs or {}
        try:
            tokens = self.tokenizer.apply_chat_template(
                messages, tools=request.tools, add_generation_prompt=True, tokenize=True, return_dict=True, **template
            )
        except Exception as error:  # jinja's, and whatever a template raises itself
            raise RequestError(f"the model's chat template refuses: {error}", param="messages") from error
        asked = self._asked(request, request.max_completion_tokens or request.max_tokens, len(tokens["input_ids"]))
        more = {"tools": request.tools, "chat_template_kwargs": request.chat_template_kwargs}
        return asked | {"messages": messages} | {name: value for name, value in more.items() if value}

    def completion(self, body: Any) -> dict[str, Any]:
        """Check and translate a request for the continuation of a text.

        Raises:
            RequestError: it is malformed, asks for something unsupported, or does not fit into the context.
        """
        request = _checked(_Completion, body)
        prompt = request.prompt if isinstance(request.prompt, str) else request.prompt[0]
        num_tokens = len(self.tokenizer(prompt, verbose=False)["input_ids"])
        if not num_tokens:
            raise RequestError("the prompt is empty", param="prompt")
        return self._asked(request, request.max_tokens, num_tokens) | {"prompt": prompt}

    def _asked(self, request: _Request, max_tokens: int | None, num_tokens: int) -> dict[str, Any]:
        """Return the request for transformers' server, except for the text of `num_tokens` tokens."""
        if request.model != self.name:
            raise RequestError(
                f"the model `{request.model}` is not served here; `{self.name}` is",
                status=404,
                param="model",
                code="model_not_found",
            )
        room = self.context_length - num_tokens
        if room < (max_tokens or 1):
            asked = f" and {max_tokens:,} for the answer" if max_tokens else ", which leaves none for an answer"
            raise RequestError(
                f"this model's context is {self.context_length:,} tokens, and the request has {num_tokens:,}{asked}",
                param="messages" if isinstance(request, _Chat) else "prompt",
                code="context_length_exceeded",
            )
        # If the model's own settings do not sample, a temperature would be ignored. Sampling only from the 50 likeliest
        # tokens is transformers' default, not the API's.
        drawn = request.temperature != 0 and (request.temperature is not None or request.top_p is not None)
        settings = {"generation_config": json.dumps({"top_k": 0} | self.generation | {"do_sample": True})}
        return {
            "model": self.name,
            "max_tokens": max_tokens or min(DEFAULT_ANSWER, room),
            **request.model_dump(include={"temperature", "top_p", "seed", "stop", "stream"}, exclude_none=True),
            **(settings if drawn else {}),
        }


def _checked(kind: type[Kind], body: Any) -> Kind:
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    body = {name: value for name, value in body.items() if name not in _WITHOUT_EFFECT and value is not None}
    for name in _NOT_OFFERED.keys() & body.keys():
        if json.dumps(body[name]) not in _NOT_OFFERED[name]:
            raise RequestError(f"{name} is not supported here", param=name, code="unsupported_parameter")
        del body[name]
    try:
        return kind(**body)
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise RequestError(f"unknown argument: {param}", param=param, code="unknown_parameter") from error
        raise RequestError(f"{param}: {first['msg']}", param=param, code=first["type"]) from error
