"""Servers that speak OpenAI's protocol, and how each is started."""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from longlora.errors import ConfigError
from longlora.serving.place import Place

EngineName = Literal["auto", "vllm", "transformers"]


def choose_engine(wanted: EngineName) -> Literal["vllm", "transformers"]:
    """vLLM where it is installed, else transformers' own server, unless told.

    Raises:
        ConfigError: the wanted one, or both, are not installed.
    """
    if wanted != "transformers" and _vllm():
        return "vllm"
    if wanted == "vllm":
        raise ConfigError("vLLM is not installed here: `pip install vllm`, or --engine transformers")
    missing = [name for name in ("fastapi", "uvicorn", "openai", "starlette", "httpx") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"serving needs {', '.join(missing)}: `pip install 'longlora[serve]'`")
    return "transformers"


def command_line(engine: Literal["vllm", "transformers"], place: Place, *, host: str, port: int) -> list[str]:
    """The command that serves `place`, to be run in its `parent` folder."""
    address = ["--host", host, "--port", str(port)]
    if engine == "vllm":
        length = ["--max-model-len", str(place.context_length), "--served-model-name", place.name]
        return [_vllm(), "serve", str(place.parent / place.name), *length, *address]
    # It takes a model's path for its name: a relative one, found because the server runs in the folder around it. -P
    # keeps that folder from being searched for Python modules.
    return [sys.executable, "-P", "-m", "transformers.cli.transformers", "serve", place.name, *address]


def _vllm() -> str:
    """Path of vLLM's command, beside this Python or on the path; empty if there is none."""
    return shutil.which("vllm", path=str(Path(sys.executable).parent)) or shutil.which("vllm") or ""
