"""The server that clients see: four paths of OpenAI's protocol, before transformers' server, which offers more.

transformers' server loads any directory for whoever asks, does not list the model it serves, and answers mistakes with
plain text or status 500. It listens on this machine alone, on a port of its own; this front before it asks for the key,
checks and translates requests (`openai_requests.py`), and gives answers and errors the protocol's form.
"""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from longlora.inference.hosts import Names, OnlyByName
from longlora.serving.openai_requests import RequestError, Translator

logger = logging.getLogger("longlora")

MAX_BODY_BYTES = 64 * 2**20  # several million tokens
_FAILED = "the model's server failed; its own messages say why"


def build_front(translator: Translator, inner: httpx.AsyncClient, *, api_key: str, names: Names) -> Starlette:
    """Make the server, as an ASGI application.

    Args:
        translator: for the model that is served.
        inner: sends requests to transformers' server.
        api_key: that requests must bring as `Authorization: Bearer …`; empty for none. `/health` needs none.
        names: that the server answers to.
    """
    entry = {
        "id": translator.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "longlora",
        "max_model_len": translator.context_length,  # as vLLM has it
    }

    async def health(request: Request) -> Response:
        answer = await inner.get("/health")
        return JSONResponse({"status": "ok" if answer.status_code == 200 else "unhealthy"}, answer.status_code)

    async def models(request: Request) -> Response:
        _authorize(request, api_key)
        return JSONResponse({"object": "list", "data": [entry]})

    async def model(request: Request) -> Response:
        _authorize(request, api_key)
        name = request.path_params["name"]
        if name != translator.name:
            raise RequestError(f"the model `{name}` is not served here", status=404, code="model_not_found")
        return JSONResponse(entry)

    async def generation(request: Request) -> Response:
        _authorize(request, api_key)
        body = await _json(request)
        is_chat = request.url.path.endswith("/chat/completions")
        asked = await asyncio.to_thread(translator.chat if is_chat else translator.completion, body)
        with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        return await _generated(inner, request.url.path, asked, with_usage=with_usage)

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/chat/completions", generation, methods=["POST"]),
            Route("/v1/completions", generation, methods=["POST"]),
        ],
        middleware=[Middleware(OnlyByName, names=names)],
        exception_handlers={HTTPException: _told, Exception: _failed},
    )


def _authorize(request: Request, api_key: str) -> None:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    is_same = hmac.compare_digest(given.strip().encode("latin-1"), api_key.encode())
    if api_key and not (is_same and scheme.lower() == "bearer"):
        raise RequestError("the API key is missing or wrong", status=401, code="invalid_api_key")


async def _generated(inner: httpx.AsyncClient, path: str, asked: dict[str, Any], *, with_usage: bool) -> Response:
    """Have transformers' server answer a request, in one piece or as a stream."""
    message = inner.build_request("POST", path, json=asked, timeout=None)  # a long prompt takes minutes to read
    answer = await inner.send(message, stream=True)
    if answer.status_code == 200 and asked.get("stream"):
        events = _events(answer, with_usage=with_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    try:
        content = await answer.aread()
    finally:
        await answer.aclose()
    if answer.status_code == 200:
        return Response(content, media_type="application/json")
    if answer.status_code >= 500:  # of its failures only that they happened
        raise RequestError(_FAILED, status=502)
    try:
        refusal = str(json.loads(content)["detail"])
    except (ValueError, KeyError, TypeError):
        refusal = content.decode("utf-8", "replace")
    raise RequestError(refusal, status=answer.status_code)


async def _json(request: Request) -> Any:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise RequestError(f"the body is larger than {MAX_BODY_BYTES // 2**20} MiB", status=413)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is no JSON: {error}") from error


async def _events(answer: httpx.Response, *, with_usage: bool) -> AsyncIterator[str]:
    """Events of a stream, its usage in one of its own where it was asked for, and the mark of its end."""
    try:
        async for line in answer.aiter_lines():
            if not line.startswith("data:"):
                continue
            try:
                chunk = json.loads(line.removeprefix("data:"))
            except ValueError:  # transformers' server does not escape an error's message
                chunk = {"error": line}
            if "error" in chunk:
                logger.error("the model's server failed: %s", chunk["error"])
                yield _event(_error(_FAILED, kind="server_error"))
                return
            usage = chunk.pop("usage", None)
            yield _event(chunk)
            if usage and with_usage:
                yield _event(chunk | {"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"
    except httpx.HTTPError:  # which whoever started it tells
        yield _event(_error("the server has ended", kind="server_error"))
    finally:  # a client that is gone stops the generation
        await answer.aclose()


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _error(message: str, *, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def _told(request: Request, error: Exception) -> Response:
    """A request that is refused, or a path or a method that is not there."""
    assert isinstance(error, HTTPException)
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    if isinstance(error, RequestError):
        kind = "authentication_error" if error.status_code == 401 else kind
        content = _error(error.detail, kind=kind, param=error.param, code=error.code)
    else:
        content = _error(f"{request.method} {request.url.path}: {error.detail}", kind=kind)
    return JSONResponse(content, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse(_error(_FAILED, kind="server_error"), 502 if isinstance(error, httpx.HTTPError) else 500)
