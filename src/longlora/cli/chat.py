"""Commands that use a model: chat, web. Like all commands they import what they need inside their bodies."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from longlora.cli.options import INTERRUPTED, AllowHost, Dtype, Model
from longlora.errors import DataError

PASSWORD_VARIABLE = "LONGLORA_WEB_PASSWORD"

Quantization = Annotated[
    Literal["nf4"] | None, typer.Option(help="Pack linear layers into 4 bits as they are loaded (bitsandbytes).")
]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="Run the code that comes with the model.")]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Longest answer, kept free in the context; by default 512, at most a quarter of it."),
]
Temperature = Annotated[float, typer.Option(help="0: the likeliest token each time. Above: tokens are drawn.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens that together have this probability.")]
System = Annotated[str, typer.Option(help="Message that opens every conversation.")]
NoCut = Annotated[bool, typer.Option("--no-cut", help="Refuse a document that does not fit, do not cut its middle.")]
StreamWindow = Annotated[
    int | None,
    typer.Option(help="See the first tokens and the latest, this many in all: endless talk, constant memory."),
]
CacheDocument = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Keep what was read of documents here, for the next time.")
]


def chat(
    model: Model,
    document: Annotated[list[Path] | None, typer.Option(help="Talk about this; may be given several times.")] = None,
    ask: Annotated[str, typer.Option(help="Answer this on stdout, and end.")] = "",
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    system: System = "",
    no_cut: NoCut = False,
    cache_document: CacheDocument = None,
    stream_window: StreamWindow = None,
    seed: Annotated[int | None, typer.Option(help="Draw the same tokens again.")] = None,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    trust_remote_code: Remote = False,
) -> None:
    """Talk with a model, about a document or not; Ctrl-C stops an answer, /help tells the rest."""
    from longlora.inference.chat_model import ChatSettings, load_chat_model
    from longlora.inference.conversation import Conversation
    from longlora.inference.documents import join_documents
    from longlora.inference.prefix_cache import SavedReadings, memory_for
    from longlora.inference.terminal import Terminal

    settings = ChatSettings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        system=system,
        cut=not no_cut,
        stream_window=stream_window,
    )
    read = document_reader()
    name, text = join_documents(document or [], read)  # a wrong name is told before a large model is loaded
    if seed is not None:
        import torch

        torch.manual_seed(seed)
    chat_model = load_chat_model(model, dtype=dtype, quantization=quantization, trust_remote_code=trust_remote_code)
    saved = SavedReadings(cache_document, model) if cache_document is not None else None
    conversation = Conversation(chat_model, settings, memory_for(chat_model, settings)(), saved)
    terminal = Terminal(conversation, read)
    if document:
        terminal.open_document(name, text)
    if ask:
        if terminal.ask(ask, tell=False).stopped:
            raise typer.Exit(INTERRUPTED)
    else:
        terminal.run()


def web(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on; by default only this machine reaches it.")] = "",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    password: Annotated[
        bool, typer.Option("--password", help="Ask visitors for it: $LONGLORA_WEB_PASSWORD, or what you type now.")
    ] = False,
    allow_host: AllowHost = None,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Largest document that may be uploaded.")] = 20,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    system: System = "",
    no_cut: NoCut = False,
    cache_document: CacheDocument = None,
    stream_window: StreamWindow = None,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    trust_remote_code: Remote = False,
) -> None:
    """Serve a page to talk with a model about an uploaded document."""
    from longlora.corpus.extract import SUFFIXES
    from longlora.inference.chat_model import ChatSettings, load_chat_model
    from longlora.inference.conversation import Conversation
    from longlora.inference.prefix_cache import SavedReadings, memory_for
    from longlora.inference.sessions import Session, SessionStore
    from longlora.inference.web import LOCALHOST, build_page, launch_page
    from longlora.support.packages import require_package

    require_package("gradio", wanted_by="longlora web")
    secret = ""
    if password:
        secret = os.environ.get(PASSWORD_VARIABLE) or typer.prompt("Password for visitors", hide_input=True)
    if host not in ("", LOCALHOST, "localhost") and not secret:
        typer.echo("anyone who reaches this address can use the model: think of --password", err=True)
    settings = ChatSettings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        system=system,
        cut=not no_cut,
        stream_window=stream_window,
    )
    chat_model = load_chat_model(model, dtype=dtype, quantization=quantization, trust_remote_code=trust_remote_code)
    memory = memory_for(chat_model, settings)
    saved = SavedReadings(cache_document, model) if cache_document is not None else None
    read = document_reader()
    store = SessionStore(lambda: Session(Conversation(chat_model, settings, memory(), saved), read))
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


def document_reader() -> Callable[[Path], str]:
    """Give what turns a file into text, by the end of its name.

    Raises, when used:
        DataError: the kind of file is not known, or the file cannot be read.
    """
    from longlora.corpus.extract import SUFFIXES, Settings, extract
    from longlora.corpus.markup import UnreadableFileError
    from longlora.inference.documents import TEXT_SUFFIXES, read_text

    def read(path: Path) -> str:
        suffix = path.suffix.lower()
        if suffix in TEXT_SUFFIXES:
            return read_text(path)
        if suffix not in SUFFIXES:
            raise DataError(f"{path} is not one of {', '.join(SUFFIXES)}: convert it to text first")
        try:
            return extract(path, Settings(references="keep")).text
        except UnreadableFileError as error:
            raise DataError(f"{path} cannot be read: {error}") from error

    return read
