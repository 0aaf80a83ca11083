"""Serve a model, or an adapter on its base, to every program that speaks OpenAI's protocol, by a server that exists.

`served_model.py` lays out what is served; `server.py` chooses a server, starts it and ends it. Before transformers'
server stands `front.py`, which lets through what `openai_requests.py` has checked.
"""

from longlora.serving.server import EngineName, serve

__all__ = ["EngineName", "serve"]
