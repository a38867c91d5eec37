"""The web UI: ask a question, watch tokens appear out of order, and compare vanilla decoding with suffix dropout.

    pip install -r demo/requirements.txt     # Gradio; nothing else in this repository needs it
    python demo/app.py                       # http://127.0.0.1:7860, the embedded model, no network
    python demo/app.py -m instruct           # LLaDA-8B, from the hub

The page talks to this process only: it loads nothing from elsewhere and sends nothing there. What a visitor types is
never more than text for the model.
"""

from __future__ import annotations

import io
import os
import socket
import sys
import tempfile
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

try:
    from dpad.engine import cuda_graphs, loading
    from dpad.engine.checks import check_integer
    from dpad.engine.command_line import Parser, say
    from dpad.results.formatting import LAYOUT, printable
except ModuleNotFoundError as error:
    if error.name != "dpad" or __name__ != "__main__":
        raise
    sys.exit("app.py: the package dpad is not installed: run `pip install -e .` in the repository's folder")

if TYPE_CHECKING:
    from dpad.interact.page import Page

HOST = "127.0.0.1"
STYLE = Path(__file__).with_name("style.css")


def serve(loaded: loading.LoadedModel, port: int) -> None:
    """Serve the page on this machine until Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="dpad-page-") as folder, redirect_stderr(PlainText(sys.stderr)):
        with cuda_graphs.use("off"):  # recorded graphs share their buffers, which visitors must not
            page = open_page(loaded, port, Path(folder))
            print(f"http://{HOST}:{port}  (Ctrl-C ends it)", flush=True)
            page.blocks.block_thread()


class PlainText(io.TextIOBase):
    """A stream on which nothing can steer a terminal: Gradio's tracebacks hold what was sent to the page."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(printable(text, LAYOUT))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()


def open_page(loaded: loading.LoadedModel, port: int, folder: Path) -> Page:
    """Begin to serve the page; uploads and downloads lie in `folder`."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    import gradio as gr  # here, because it takes seconds and `--help` works without it
    from starlette.middleware import Middleware

    from dpad.interact.denoiser import MAX_FILE, Denoiser
    from dpad.interact.guard import Guard
    from dpad.interact.page import Page

    # The base theme has the fonts of the visitor's machine; Gradio's default fetches some from the web. Its greys are
    # too faint to read (WCAG asks for 4.5 : 1), as is white on its cyan.
    grey, grey_dark = "#5b6068", "#a3abb5"
    theme = gr.themes.Base(
        primary_hue="cyan", font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"],
    ).set(
        body_text_color_subdued=grey, body_text_color_subdued_dark=grey_dark, block_info_text_color=grey,
        block_info_text_color_dark=grey_dark, block_label_text_color=grey, block_label_text_color_dark=grey_dark,
        block_title_text_color=grey, block_title_text_color_dark=grey_dark, input_placeholder_color=grey,
        input_placeholder_color_dark=grey_dark, button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800", button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
    )
    page = Page(Denoiser(loaded))
    guard = Middleware(Guard, streams=page.streams, uploads=folder, max_upload=MAX_FILE + 2**20)
    page.blocks.launch(
        server_name=HOST, server_port=port, share=False, quiet=True, theme=theme,
        css=STYLE.read_text(encoding="utf-8"), footer_links=[], ssr_mode=False, enable_monitoring=False,
        max_file_size=MAX_FILE, app_kwargs={"middleware": [guard]}, prevent_thread_lock=True,
    )
    return page


def check_port(port: int) -> None:
    """Raise ValueError, naming the port and what is allowed, unless the page can be served there."""
    check_integer("port", port, 1, 2**16 - 1)
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does, after one that has ended
            probe.bind((HOST, port))
    except OSError as error:
        raise ValueError(f"port is {port}, which cannot be used ({error.strerror}); choose another with --port, from "
                         "1024 to 65535") from error


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="app.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("-m", "--model", default="tiny", help="tiny, dream-tiny, instruct, 1.5, ..., a folder or a hub "
                        "id (default: tiny)")
    parser.add_argument("--adapter", metavar="FOLDER", help="a LoRA adapter to be merged into its weights, or its hub "
                        "id")
    parser.add_argument("--port", type=int, default=7860, help=f"on {HOST} (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the first GPU, or the CPU)")
    parser.add_argument("--dtype", help="float32, bfloat16, float16")
    options = parser.parse_args(arguments)

    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if find_spec("gradio") is None:
        print("app.py: the page needs Gradio: pip install -r demo/requirements.txt", file=sys.stderr)
        return 1

    try:
        check_port(options.port)
        print(f"loading {options.model} ...", file=sys.stderr, flush=True)
        loaded = loading.load(options.model, device=options.device, dtype=options.dtype, adapter=options.adapter)
        serve(loaded, options.port)
    except (ValueError, OSError) as error:
        say("app.py", error)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
