"""The web UI: ask a question, watch tokens appear out of order, and compare vanilla decoding with suffix dropout.

    pip install -r demo/requirements.txt     # Gradio; nothing else in this repository needs it
    python demo/app.py                       # http://127.0.0.1:7860, the embedded model, no network
    python demo/app.py -m instruct           # LLaDA-8B, from the hub

The page talks to this process only: it loads nothing from elsewhere and sends nothing there. What a visitor types is
never more than text for the model.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

try:
    from dpad.engine import cuda_graphs, loading
except ModuleNotFoundError as error:
    if error.name != "dpad" or __name__ != "__main__":
        raise
    sys.exit("app.py: the package dpad is not installed: run `pip install -e .` in the repository's folder")

STYLE = Path(__file__).with_name("style.css")


def serve(loaded: loading.LoadedModel, port: int) -> None:
    """Serve the page on this machine until Ctrl-C."""
    import gradio as gr  # here, because it takes seconds and `--help` works without it

    from dpad.interact.denoiser import MAX_FILE, Denoiser
    from dpad.interact.page import Page

    # The base theme has the fonts of the visitor's machine; Gradio's default fetches some from the web.
    theme = gr.themes.Base(primary_hue="cyan", font=["ui-sans-serif", "system-ui", "sans-serif"],
                           font_mono=["ui-monospace", "monospace"])
    with cuda_graphs.use("off"):  # recorded graphs share their buffers, which visitors must not
        page = Page(Denoiser(loaded))
        print(f"http://127.0.0.1:{port}  (Ctrl-C ends it)", flush=True)
        page.blocks.launch(
            server_name="127.0.0.1", server_port=port, share=False, quiet=True, theme=theme,
            css=STYLE.read_text(encoding="utf-8"), footer_links=[], ssr_mode=False, enable_monitoring=False,
            max_file_size=MAX_FILE,
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="app.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("-m", "--model", default="tiny", help="tiny, dream-tiny, instruct, 1.5, ..., a folder or a hub "
                        "id (default: tiny)")
    parser.add_argument("--port", type=int, default=7860, help="on 127.0.0.1 (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the first GPU, or the CPU)")
    parser.add_argument("--dtype", help="float32, bfloat16, float16")
    options = parser.parse_args(arguments)

    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ImportError:
        print("app.py: the page needs Gradio: pip install -r demo/requirements.txt", file=sys.stderr)
        return 1

    try:
        serve(loading.load(options.model, device=options.device, dtype=options.dtype), options.port)
    except (ValueError, OSError) as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
