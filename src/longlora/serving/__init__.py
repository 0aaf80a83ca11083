"""Serve a model or an adapter through an OpenAI-compatible API, with vLLM's or transformers' server.

`served_model.py` lays out the model directory; `server.py` chooses, starts and stops the server. `front.py` is a proxy
in front of transformers' server, and passes on the requests that `openai_requests.py` has checked.
"""

from longlora.serving.server import serve

__all__ = ["serve"]
