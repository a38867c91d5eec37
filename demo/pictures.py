"""Make the README's pictures: the film of a denoising, and the web page in a light and a dark browser.

    python demo/pictures.py          # needs demo/requirements.txt and Chromium; writes benchmarks/*.gif and *.png

The film is drawn from traces that are kept beside it: `python run.py trace benchmarks/denoising-*.jsonl --gif OUT`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from demo.app import EXAMPLES
from dpad import ROOT
from dpad.engine import completion, loading
from dpad.interact import gif, trace

OUTPUT = ROOT / "benchmarks"
DPAD = {"dropout_strategy": "gaussian", "k_sigma": 3, "scale": 1.6, "early_termination": True}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


def film(path: Path, vanilla: Path, dpad: Path) -> None:
    """Vanilla above DPad, one token a forward, on one question and one clock; the traces are kept in two files."""
    loaded = loading.load("tiny", device="cpu")
    text, traces = loaded.chat(EXAMPLES[0]), []
    for settings, file in (({}, vanilla), (DPAD, dpad)):
        options = completion.decoding_options(loading.FAMILIES["llada"], gen_length=256, **settings)
        completion.complete(loaded, [text], options | {"gen_length": 32, "steps": 2, "suffix_sampler": None})  # warm
        tracer = trace.Tracer(trace.head_of(loaded, EXAMPLES[0], options), loaded)
        [answer] = completion.complete(loaded, [text], options, until=[loaded.tokenizer.eos_token], streamer=tracer)
        traces.append(tracer.finish(answer))
        traces[-1].write(file)
    gif.draw_gif(traces, path)


def screenshots(light: Path, dark: Path, port: int = 7861) -> None:
    """The page in the middle of an answer with DPad (light), and a finished comparison (dark)."""
    from playwright.sync_api import sync_playwright

    server = subprocess.Popen([sys.executable, str(ROOT / "demo" / "app.py"), "--port", str(port)],
                              stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(address, timeout=2)
                break
            except OSError:
                time.sleep(0.3)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=next(filter(None, map(shutil.which, BROWSERS))),
                                                 args=FLAGS)
            for path, scheme in ((light, "light"), (dark, "dark")):
                page = browser.new_page(viewport={"width": 1240, "height": 980}, color_scheme=scheme)
                page.goto(address)
                page.wait_for_selector("#ask")
                page.wait_for_timeout(1500)
                if scheme == "light":
                    page.click("#ask")
                    page.wait_for_function("+(document.querySelector('#left .trace') || {dataset: {}})"
                                           ".dataset.forwards > 40", timeout=120_000)
                else:
                    page.get_by_role("radio", name="All", exact=True).check()
                    page.wait_for_timeout(500)
                    page.click("#compare")
                    page.wait_for_selector("#message .faster", timeout=240_000)
                    page.evaluate("document.querySelector('#message').scrollIntoView()")
                    page.wait_for_timeout(500)
                page.screenshot(path=path)
            browser.close()
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    film(OUTPUT / "denoising.gif", OUTPUT / "denoising-1-vanilla.jsonl", OUTPUT / "denoising-2-dpad.jsonl")
    screenshots(OUTPUT / "page-light.png", OUTPUT / "page-dark.png")
    print(f"{OUTPUT}: denoising.gif, page-light.png, page-dark.png")
