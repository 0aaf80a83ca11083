"""Serve a model, or an adapter on its base, to every program that speaks OpenAI's protocol, by a server that exists.

`place.py` lays out what is served; `engines.py` knows the servers' command lines; `run.py` starts one and ends it.
Before transformers' server stands `front.py`, which lets through what `requests.py` has checked.
"""

from longlora.serving.engines import EngineName
from longlora.serving.server import serve

__all__ = ["EngineName", "serve"]
