"""The server that clients see: a proxy with four paths of OpenAI's API, in front of transformers' server.

transformers' server loads any directory for anyone, does not list the model it serves, and answers invalid requests
with plain text or status 500. It listens only on this machine, on its own port. This proxy checks the key, checks and
translates requests (`openai_requests.py`), and gives answers and errors the API's format.
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
    """Return the server, as an ASGI application.

    Args:
        translator: for the served model.
        inner: client for transformers' server.
        api_key: key that requests must send as `Authorization: Bearer …`; empty for none. `/health` needs none.
        names: host names that the server answers to.
    """
    entry = {
        "id": translator.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "longlora",
        "max_model_len": translator.context_length,  # as in vLLM
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
    """Let transformers' server answer a request, in one piece or as a stream."""
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
    if answer.status_code >= 500:  # without details of the failure
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
        raise RequestError(f"the body is not JSON: {error}") from error


async def _events(answer: httpx.Response, *, with_usage: bool) -> AsyncIterator[str]:
    """Yield the events of a stream, its usage in a separate one if requested, and the end mark."""
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
    except httpx.HTTPError:  # `server.py` reports it
        yield _event(_error("the server stopped", kind="server_error"))
    finally:  # a client that disconnects stops the generation
        await answer.aclose()


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _error(message: str, *, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def _told(request: Request, error: Exception) -> Response:
    """Answer a refused request, or one with an unknown path or method."""
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
