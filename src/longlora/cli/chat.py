"""The commands chat and web. They import what they need inside their bodies."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longlora.cli.options import INTERRUPTED, AllowHost, Dtype, Host, Model, Port, SeedOrNone, unfolded
from longlora.errors import DataError
from longlora.support.choices import Quantization

if TYPE_CHECKING:
    from threading import Event

    from longlora.inference.chat_model import ChatModel
    from longlora.inference.conversation import Chat

_UPLOAD_SECONDS = 120.0
_UPLOAD_MEMORY_BYTES = 4 << 30
PASSWORD_VARIABLE = "LONGLORA_WEB_PASSWORD"


@dataclass(frozen=True)
class ChatOptions:
    """How to load a model and chat with it, in the terminal and on the web page."""

    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Longest answer in tokens, reserved in the context; default: 512, at most a quarter of it."
        ),
    ] = None
    temperature: Annotated[float, typer.Option(help="0: greedy decoding. Above 0: sampling.")] = 0.0
    top_p: Annotated[
        float, typer.Option(help="Nucleus sampling: sample from the most likely tokens up to this total probability.")
    ] = 1.0
    system: Annotated[str, typer.Option(help="System message of every conversation.")] = ""
    no_cut: Annotated[
        bool, typer.Option("--no-cut", help="Refuse a document that does not fit instead of cutting its middle.")
    ] = False
    cache_document: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder to cache processed documents in, so that they need not be read again."
        ),
    ] = None
    stream_window: Annotated[
        int | None,
        typer.Option(
            help="Attend only to the first and the latest tokens, this many in total: endless chat in constant memory."
        ),
    ] = None
    dtype: Dtype = "auto"
    quantization: Annotated[Quantization | None, typer.Option(help="Load linear layers in 4 bits (bitsandbytes).")] = (
        None
    )
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code shipped with the model.")
    ] = False


@unfolded
def chat(
    model: Model,
    options: ChatOptions,
    document: Annotated[list[Path] | None, typer.Option(help="Document to talk about; may be repeated.")] = None,
    ask: Annotated[str, typer.Option(help="Answer this question on stdout and exit.")] = "",
    seed: SeedOrNone = None,
) -> None:
    """Chat with a model, optionally about a document; Ctrl-C stops an answer, /help lists commands."""
    from longlora.inference.documents import join_documents
    from longlora.inference.terminal import Terminal

    name, text = join_documents(document or [], read_document)  # a wrong name fails before a large model is loaded
    if seed is not None:
        import torch

        torch.manual_seed(seed)
    _, new_conversation = _load(model, options)
    terminal = Terminal(new_conversation(), read_document)
    if document:
        terminal.open_document(name, text)
    if ask:
        if terminal.ask(ask, tell=False).stopped:
            raise typer.Exit(INTERRUPTED)
    else:
        terminal.run()


@unfolded
def web(
    model: Model,
    options: ChatOptions,
    host: Host = "",
    port: Port = 7860,
    password: Annotated[
        bool, typer.Option("--password", help="Require a password: $LONGLORA_WEB_PASSWORD, or typed at the prompt.")
    ] = False,
    allow_host: AllowHost = None,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Maximum size of an uploaded document.")] = 20,
) -> None:
    """Serve a web page for chatting with a model about an uploaded document."""
    from longlora.corpus.extract import SUFFIXES
    from longlora.inference.sessions import Session, SessionStore
    from longlora.inference.web import LOCALHOST, build_page, launch_page
    from longlora.support.machine import require_package

    require_package("gradio", wanted_by="longlora web")
    secret = ""
    if password:
        secret = os.environ.get(PASSWORD_VARIABLE) or typer.prompt("Password for visitors", hide_input=True)
    if host not in ("", LOCALHOST, "localhost") and not secret:
        typer.echo("anyone who can reach this address can use the model: consider --password", err=True)
    chat_model, new_conversation = _load(model, options)
    store = SessionStore(lambda: Session(new_conversation(), _read_upload))
    page = build_page(chat_model, store, suffixes=list(SUFFIXES), max_megabytes=max_megabytes)
    address = launch_page(
        page,
        host=host or LOCALHOST,
        port=port,
        password=secret,
        max_megabytes=max_megabytes,
        allowed_hosts=allow_host or (),
    )
    typer.echo(f"{chat_model.name} answers at {address} (Ctrl-C ends it)")
    page.block_thread()


def _load(model: str, options: ChatOptions) -> "tuple[ChatModel, Callable[[], Chat]]":
    """Load the model; return it with a function that starts a conversation."""
    from longlora.inference.chat_model import ChatSettings, load_chat_model
    from longlora.inference.conversation import Chat
    from longlora.inference.reading import SavedReadings

    same = ("max_new_tokens", "temperature", "top_p", "system", "stream_window")
    settings = ChatSettings(**{name: getattr(options, name) for name in same}, cut=not options.no_cut)
    chat_model = load_chat_model(
        model, dtype=options.dtype, quantization=options.quantization, trust_remote_code=options.trust_remote_code
    )
    saved = SavedReadings(options.cache_document, model) if options.cache_document is not None else None
    return chat_model, lambda: Chat(chat_model, settings, saved)


def _read_upload(path: Path, stop: "Event") -> str:
    """Read an untrusted file in a separate process, which limits the time and memory that it can take."""
    from longlora.support.apart import call_apart

    return call_apart(
        read_document,
        path,
        stop=stop,
        seconds=_UPLOAD_SECONDS,
        memory_bytes=_UPLOAD_MEMORY_BYTES,
        preload=("longlora.corpus.extract",),
    )


def read_document(path: Path) -> str:
    """Convert a file to text; its suffix determines the format.

    Raises:
        DataError: the format is unknown, or the file cannot be read.
    """
    from longlora.corpus.extract import SUFFIXES, ExtractSettings, extract

    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path} is not one of {', '.join(SUFFIXES)}: convert it to text first")
    try:
        return extract(path, ExtractSettings(references="keep")).text
    except DataError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
