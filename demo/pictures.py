"""Make the pictures in the README: the GIF of an answer being decoded, and the web UI in a light and a dark browser.

    python -m demo.pictures --output pictures        # needs demo/requirements.txt and Chromium
    python -m demo.pictures --output benchmarks      # those that the README shows

The GIF is drawn from traces that are written beside it; to draw it again from them alone:

    python run.py trace benchmarks/denoising-*.jsonl --gif denoising.gif --seconds 5
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dpad import ROOT
from dpad.engine import completion, loading
from dpad.engine.command_line import Parser, say
from dpad.engine.configurations import CONFIGURATIONS
from dpad.interact.gif import write_gif
from dpad.interact.page import EXAMPLES
from dpad.interact.trace import Trace, Tracer
from dpad.results import outputs

if TYPE_CHECKING:
    from playwright.sync_api import Page

GEN_LENGTH = 256
QUESTION = next(iter(EXAMPLES.values()))
SECONDS = 5.0  # of the GIF
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER_FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--disable-sync"]
PORT = 7861

TRACES = {"Vanilla": "denoising-1-vanilla.jsonl", "+DPad": "denoising-2-dpad.jsonl"}
GIF = "denoising.gif"
SCREENSHOT = "page-{}.png"
SCHEMES = ("light", "dark")


def make_gif(folder: Path) -> None:
    """Vanilla above DPad, one token per forward, on one question and one clock; the traces are kept as well."""
    loaded = loading.load("tiny", device="cpu")
    traces = []
    for name, file in TRACES.items():
        trace = record(loaded, name)
        trace.write(folder / file)
        traces.append(trace)
    write_gif(traces, folder / GIF, SECONDS)


def record(loaded: loading.LoadedModel, name: str) -> Trace:
    """The trace of an example's answer with a named configuration."""
    settings = loaded.family.settings.from_choices(CONFIGURATIONS[name].choices(GEN_LENGTH))
    text = loaded.chat(QUESTION)
    completion.warm_up(loaded, text, GEN_LENGTH)
    tracer = Tracer(loaded, QUESTION, settings)
    [answer] = completion.complete(loaded, [text], settings, streamer=tracer)
    return tracer.finish(answer)


def find_browser() -> str:
    """The browser that takes the screenshots. Raises ValueError where it, or what drives it, is missing."""
    for package in ("playwright", "gradio"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{package} is not installed: pip install -r demo/requirements.txt")
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        raise ValueError(f"no browser is installed; it must be one of {', '.join(BROWSERS)}")
    return executable


def take_screenshots(folder: Path, executable: str) -> None:
    """The page in the middle of an answer with DPad (light), and with a finished comparison (dark)."""
    from playwright.sync_api import sync_playwright

    with serve() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=BROWSER_FLAGS)
        scenes: dict[Literal["light", "dark"], Callable[[Page], None]] = {"light": show_answer, "dark": show_comparison}
        for scheme, show in scenes.items():
            page = browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme=scheme)
            page.goto(address)
            page.wait_for_selector("#left .idle")
            show(page)
            page.screenshot(path=folder / SCREENSHOT.format(scheme))
        browser.close()


@contextmanager
def serve() -> Iterator[str]:
    """The web UI in a process of its own; yields its address."""
    command = [sys.executable, str(ROOT / "demo" / "app.py"), "--port", str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{PORT}/"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(address, timeout=2)
                break
            except OSError:
                time.sleep(0.3)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def show_answer(page: Page) -> None:
    page.click("#ask")
    page.wait_for_function("+(document.querySelector('#left .trace') || {dataset: {}}).dataset.forwards > 40",
                           timeout=120_000)


def show_comparison(page: Page) -> None:
    page.click("#compare")
    page.wait_for_selector("#right .trace", timeout=120_000)
    page.wait_for_selector("#stop:disabled", timeout=240_000)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line shown at the top of this file; returns the exit status."""
    parser = Parser(prog="pictures.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", metavar="FOLDER", type=Path, required=True,
                        help="where the pictures and the traces are written; earlier ones are replaced")
    folder = parser.parse_args(arguments).output
    try:
        for name in TRACES.values():
            outputs.check("--output", folder / name, outputs.TRACE)
        outputs.check("--output", folder / GIF, outputs.GIF)
        for scheme in SCHEMES:
            outputs.check("--output", folder / SCREENSHOT.format(scheme), outputs.PICTURE)
        executable = find_browser()
    except ValueError as error:
        say("pictures.py", error)
        return 2

    folder.mkdir(parents=True, exist_ok=True)
    make_gif(folder)
    take_screenshots(folder, executable)
    print(f"{folder}: {', '.join([GIF, *map(SCREENSHOT.format, SCHEMES)])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
