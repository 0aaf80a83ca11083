"""Chat on a web page: upload a paper or a book, ask, and watch the answer being written.

One model serves all visitors, one question at a time; each open page has its own conversation. The page loads nothing
from other servers, and only this machine can reach it unless a host is given.

gradio's `ChatInterface` is not enough: it has no `concurrency_id`, by which questions and uploads take turns at the
model; its stop button cancels the event, so a stopped answer is not shown; it drops a refused question; and its helper
events stay open to gradio's API clients.
"""

import hmac
import html
import os
import re
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Any

from longlora.errors import ConfigError
from longlora.inference.chat_model import ChatModel
from longlora.inference.hosts import Names, OnlyByName
from longlora.inference.sessions import Session, SessionStore, usage_html

LOCALHOST = "127.0.0.1"
QUEUE_SIZE = 16
MOST_STATES = 100  # of visitors' pages, 70 kB each, that gradio keeps also after they have left; its default is 10,000
EXAMPLES = [
    "Summarize the document in five sentences.",
    "What is the main result, and what is it based on?",
    "Which limitations does the document itself name?",
]
_ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
_AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_FILE = re.compile(r"(?:/gradio_api)?/file[=/]")
# With a keyboard, focus the question; gradio's own autofocus would scroll a small page down to it.
_FOCUS = """() => {
  if (matchMedia("(pointer: fine)").matches)
    document.querySelector("#question textarea")?.focus({ preventScroll: true })
}"""
_STYLE = """
.gradio-container { max-width: min(72rem, 100vw) !important; margin: 0 auto !important; }
#title h1 { margin: 0; font-size: 1.4rem; }
#title p, #note p, #usage .numbers { font-size: .9rem; opacity: .8; color: var(--body-text-color); }
#usage .track { height: .5rem; border-radius: .25rem; background: var(--border-color-primary); overflow: hidden; }
#usage .fill { height: 100%; background: var(--primary-500); }
#usage .full { background: #b91c1c; }
#document a { pointer-events: none; }
#chat { height: 60dvh !important; min-height: 20rem; }
#chat .message, #chat .prose, #note p { overflow-wrap: anywhere; min-width: 0; }
#chat pre, #chat code { white-space: pre-wrap !important; overflow-wrap: anywhere; min-width: 0; }
@media (max-width: 640px) { .gradio-container { padding: .5rem !important; } #chat { height: 55dvh !important; } }
"""


def build_page(chat_model: ChatModel, store: SessionStore, *, suffixes: list[str], max_megabytes: int) -> Any:
    """Lay out the page, and connect its parts to the visitors' sessions; returns a gradio `Blocks`."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, and by every part of it
    import gradio

    # The type of the first argument makes gradio pass the request, whose session hash is the visitor's key.
    def visitors(action: Callable[..., Iterator[tuple]]) -> Callable[..., Iterator[tuple]]:
        def run(request: gradio.Request, *values: Any) -> Iterator[tuple]:
            yield from action(store.enter(str(request.session_hash)), *values)

        return run

    def stop(request: gradio.Request) -> None:
        store.stop(str(request.session_hash))

    def leave(request: gradio.Request) -> None:
        store.leave(str(request.session_hash))

    with gradio.Blocks(
        title=f"longlora · {chat_model.name}", analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        gradio.Markdown(
            f"# Talk about a document\n{html.escape(chat_model.name)} reads {chat_model.context:,} tokens.",
            elem_id="title",
        )
        with gradio.Row():
            with gradio.Column(scale=1, min_width=260):
                label = f"Document, up to {max_megabytes} MB"
                upload = gradio.File(label=label, file_types=suffixes, height=170, elem_id="document")
                usage = gradio.HTML(usage_html(store.begin().conversation.usage()), elem_id="usage", padding=False)
                again = gradio.Button("New conversation", size="md", elem_id="again")
            with gradio.Column(scale=3, min_width=300):
                invitation = f"Upload a document ({', '.join(suffixes)}), or just ask."
                look: dict[str, Any] = {"show_label": False, "height": None, "allow_tags": False, "buttons": ["copy"]}
                chat = gradio.Chatbot(elem_id="chat", placeholder=invitation, **look)
                look = {"show_label": False, "lines": 1, "max_lines": 6, "submit_btn": True, "stop_btn": False}
                question = gradio.Textbox(elem_id="question", placeholder="Ask a question", **look)
                note = gradio.Markdown("", elem_id="note")
                gradio.Examples([[example] for example in EXAMPLES], inputs=[question], label="Ask, for example")
        shown = [chat, question, usage, note]
        question.submit(visitors(Session.ask), [question, chat], shown, **_ONE_AT_A_TIME)
        question.stop(stop, None, None, **_AT_ONCE)
        for event, action, inputs in (
            (upload.upload, Session.open, [upload]),
            (upload.clear, Session.close, None),
            (again.click, Session.clear, None),
            (chat.clear, Session.clear, None),
        ):
            event(stop, None, None, **_AT_ONCE).then(visitors(action), inputs, shown, **_ONE_AT_A_TIME)
        page.unload(leave)
        page.load(None, None, None, js=_FOCUS, **_AT_ONCE)
    page.queue(max_size=QUEUE_SIZE, api_open=False)
    return page


class _WithoutFiles:
    """ASGI middleware that serves no uploaded files: they are for the model, and their links would open for anyone."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and _FILE.match(scope["path"]):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self._app(scope, receive, send)


def launch_page(
    page: Any, *, host: str, port: int, password: str, max_megabytes: int, allowed_hosts: Collection[str] = ()
) -> str:
    """Serve the page in its own threads, and return its address.

    It answers only to the machine's names and to `allowed_hosts`, and to no page of another site.

    Raises:
        ConfigError: the port is taken.
    """
    import gradio
    from starlette.middleware import Middleware

    guards = [Middleware(OnlyByName, names=Names.of(host, allowed_hosts)), Middleware(_WithoutFiles)]
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            auth=(lambda _, given: hmac.compare_digest(given.encode(), password.encode())) if password else None,
            auth_message="Any name will do." if password else None,
            max_file_size=f"{max_megabytes}mb",
            app_kwargs={"middleware": guards},
            state_session_capacity=MOST_STATES,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            theme=gradio.themes.Default(
                font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "Consolas", "monospace"]
            ),
            css=_STYLE,
        )
    except OSError as error:
        raise ConfigError(f"port {port} of {host} is taken or cannot be used; choose another with --port") from error
    return str(address)
