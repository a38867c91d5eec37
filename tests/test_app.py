"""The web page in a real browser: ask, watch, compare, scrub, mistakes, two visitors, a narrow screen, the keyboard.

    bash tests/run.sh tests/test_app.py

Needs Chromium (Debian's package, or Chrome in the PATH) and demo/requirements.txt; without them it is skipped.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass

import pytest
from helpers import ROOT

from dpad.engine import loading
from dpad.engine.fields import setting
from dpad.engine.methods import METHODS
from dpad.engine.rules import RULES
from dpad.engine.settings import RULE, SAMPLER
from dpad.interact.denoiser import Denoiser
from llada.settings import LLaDASettings
from sampler import AnchorSampler, AttentionSampler, GaussianSampler

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
LONG = 60_000  # milliseconds


page_module = pytest.importorskip("dpad.interact.page", reason="demo/requirements.txt is not installed")
Page, PRESETS, show_value = page_module.Page, page_module.PRESETS, page_module.show_value
sync_api = pytest.importorskip("playwright.sync_api", reason="demo/requirements.txt is not installed")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page, served by a process of its own on a free port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    log = tmp_path_factory.mktemp("page") / "log"
    with log.open("w") as file:
        server = subprocess.Popen([sys.executable, str(ROOT / "demo" / "app.py"), "--port", str(port)], cwd="/",
                                  stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    url, deadline = f"http://127.0.0.1:{port}/", time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=2)
            break
        except OSError:
            time.sleep(0.3)
    yield url
    server.terminate()
    server.wait(30)
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def visit(browser, address):
    """Open the page in a context of its own; whatever it asked for elsewhere, and errors, fail the test."""
    pages, elsewhere, errors = [], [], []

    def open_page(**options):
        page = browser.new_context(**options).new_page()
        page.set_default_timeout(LONG)
        page.on("request", lambda request: elsewhere.append(request.url)
                if not request.url.startswith((address, "data:", "blob:", address.replace("http", "ws"))) else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#ask")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.context.close()
    assert not elsewhere and not errors


def choose(page, preset):
    page.get_by_role("radio", name=preset, exact=True).check()
    page.wait_for_timeout(400)


def set_number(page, field, value):
    """Type a number and wait until its slider, if any, follows; a page under load may miss the first time."""
    number = page.locator(f"#{field} input[type=number]")
    slider = page.locator(f"#{field} input[type=range]")
    for _ in range(5):
        number.fill(str(value))
        number.press("Enter")
        number.press("Tab")
        page.wait_for_timeout(500)
        if not slider.count() or slider.input_value() == str(value):
            return


def finished(page, side="left"):
    return page.wait_for_selector(f'#{side} .trace[data-done="1"]')


pytestmark = [pytest.mark.browser, needs_browser]


def test_every_setting_has_a_control(checkpoint_folder, monkeypatch):
    """The controls are those of the family's settings; a field that a settings class gains has one at once."""

    @dataclass(frozen=True, kw_only=True)
    class Extended(LLaDASettings):
        patience: int | None = setting(None, "steps without a change", minimum=1)

    monkeypatch.setattr("llada.settings.LLaDASettings", Extended)
    page = Page(Denoiser(loading.load(str(checkpoint_folder), device="cpu")))
    assert set(page.controls) == {entry.name for entry in Extended.choices()}
    values = {name: control.value for name, control in page.controls.items()}
    assert values["dropout_strategy"] == "gaussian" and values["patience"] == 0
    choices = page.read_choices(tuple((values | {"patience": 5.0}).values()))
    assert page.denoiser.make_settings(choices).patience == 5


def test_vanilla_beside_the_settings(checkpoint_folder):
    """A comparison keeps what is not one of the presets' settings, and settings without DPad get it."""
    page = Page(Denoiser(loading.load(str(checkpoint_folder), device="cpu")))
    values = {name: control.value for name, control in page.controls.items()}
    values |= {"dropout_strategy": "null", "threshold": 0.5, "cache": "dual", "block_length": 16, "factor": 0}
    vanilla, other = page.choose(tuple(values.values()), with_vanilla=True)
    assert vanilla == LLaDASettings(block_length=16)
    assert other == LLaDASettings(block_length=16, threshold=0.5, cache="dual", early_termination=True,
                                  suffix_sampler=GaussianSampler(256, 3, 1.6))


def test_a_choice_brings_its_own_parameters(checkpoint_folder):
    """Guards controls that hold what an earlier strategy or rule left there: DPad's window of 256 would keep the whole
    suffix for any other, and a threshold clashes with a rule that has none. A preset is its method."""
    page = Page(Denoiser(loading.load(str(checkpoint_folder), device="cpu")))
    values = {name: control.value for name, control in page.controls.items()} | {"threshold": 0.7}

    def settings_with(changes):
        shown = {name: show_value(page.settings[name], value) for name, value in changes.items()}
        return page.denoiser.make_settings(page.read_choices(tuple((values | shown).values())))

    def choose(part, name):
        return settings_with(page.part_values(part, name, 256) | {part.selector.name: name})

    for name, sampler in (("attention", AttentionSampler(8, 64)), ("anchor", AnchorSampler(64)),
                          ("streaming", AnchorSampler(96)), ("ssm", AnchorSampler(64, 32))):
        assert choose(SAMPLER, name).suffix_sampler == sampler
    for name, rule in RULES.items():
        assert choose(RULE, name).rule == rule() and choose(RULE, name).threshold is None
    for preset, name in PRESETS.items():
        method = METHODS[name].choices(256, model=str(checkpoint_folder))
        assert settings_with(page.preset_values(preset, 256)) == LLaDASettings.from_choices(method), preset


def test_the_canvas_changes_while_the_model_decodes(visit):
    """Ask with DPad: first masks and two kinds of suffix, then more and more tokens, at last the answer."""
    page = visit()
    page.click("#settings button")
    page.get_by_label("Early termination").uncheck()  # long enough to be watched
    page.wait_for_timeout(300)
    page.click("#ask")
    page.wait_for_function("""() => {
        const count = kind => document.querySelectorAll(`#left .trace[data-done="0"] .cells i.${kind}`).length
        return count('block') && count('kept') && count('dropped')
    }""")
    first = int(page.locator("#left .trace").get_attribute("data-forwards"))
    page.wait_for_function(f"+document.querySelector('#left .trace').dataset.forwards > {first}")
    finished(page)
    assert "####" in page.locator("#left .answer").inner_text()
    assert page.locator("#left .cells i.block").count() == 0 and page.locator("#left .cells i.decided").count() == 256
    colours = {page.locator(f"#left .cells i.decided{late}").first.evaluate("cell => getComputedStyle(cell).color")
               for late in (":not(.late)", ".late")}
    assert colours == {"rgb(31, 35, 40)", "rgb(255, 255, 255)"}, "dark text on early, light text on late colours"
    label = page.locator("#left .cells i.decided").first.get_attribute("title")
    assert "forward" in label and "confidence" in label


def test_play_pause_and_scrub(visit):
    """The finished denoising can be gone through: forwards by the slider and by playing."""
    page = visit()
    page.click("#ask")
    finished(page)
    page.wait_for_selector("#player")
    number = page.locator("#position input[type=number]")
    total = int(number.input_value())
    set_number(page, "position", 1)
    page.wait_for_selector('#left .trace[data-forwards="1"]')
    assert page.locator("#left .cells i.block").count()
    page.click("#play")
    page.wait_for_selector(f'#left .trace[data-forwards="{total}"]')
    page.wait_for_function("document.querySelector('#play').innerText.trim() == 'Play'")


def test_attention_lies_over_the_canvas(visit):
    """Ticked before asking: bars on the cells, another layer's by the slider, none when off; then a sentence."""
    page = visit()
    assert not page.locator("#layer").is_visible()
    page.get_by_label("Attention").check()
    page.wait_for_selector("#layer")
    page.click("#ask")
    finished(page)
    bars = "[...document.querySelectorAll('#left .cells i')].map(cell => getComputedStyle(cell).boxShadow).join()"
    page.wait_for_selector('#left .cells i[style*="--bar"]')
    mean = page.evaluate(bars)
    assert "attention to prompt" in page.locator("#left .numbers").inner_text()
    assert "attention" in page.locator("#left .cells i").first.get_attribute("title")
    set_number(page, "layer", 2)
    page.wait_for_function(f"before => {bars} != before", arg=mean)
    set_number(page, "position", 5)
    page.wait_for_selector('#left .trace[data-forwards="5"] .cells i[style*="--bar"]')
    page.get_by_label("Attention").uncheck()
    page.wait_for_function("!document.querySelector('#left .cells i[style*=\"--bar\"]')")
    page.click("#ask")
    page.wait_for_selector('#left .trace[data-done="0"]')
    finished(page)
    page.get_by_label("Attention").check()
    page.wait_for_function("document.querySelector('#left .legend').innerText.includes('ask again')")


def test_comparison(visit):
    """Vanilla and DPad side by side on one question, their clocks, and a sentence about both at the end."""
    page = visit()
    choose(page, "All")
    page.click("#compare")
    page.wait_for_selector("#right .trace")
    page.wait_for_selector("#message .verdict")
    verdict = page.locator("#message").inner_text()
    assert "faster than vanilla" in verdict and "of the positions in each forward" in verdict
    assert "Vanilla" in page.locator("#left h3").inner_text()
    assert "DPad, threshold 0.9, prefix cache" in page.locator("#right h3").inner_text()
    assert page.locator("#left .trace").get_attribute("data-forwards") == "256"
    assert int(page.locator("#right .trace").get_attribute("data-forwards")) < 100


def test_mistakes_are_said_and_change_nothing(visit):
    """An empty question, a window over the answer's length: one sentence each, and the next answer works."""
    page = visit()
    page.fill("#question textarea", "   ")
    page.click("#ask")
    page.wait_for_selector('#message [role="alert"]')
    assert "the question is empty" in page.locator("#message").inner_text()
    page.fill("#question textarea", "<img src=x onerror=alert(1)> has 3 apples. How many apples?")
    page.click("#settings button")
    set_number(page, "gen_length", 64)
    page.click("#ask")
    page.wait_for_function("document.querySelector('#message').innerText.includes('window')")
    assert "window is 256" in page.locator("#message").inner_text()
    set_number(page, "window", 32)
    page.click("#ask")
    finished(page)
    assert page.locator("#left img").count() == 0, "what a visitor types is text"


def test_the_retention_curve_follows_the_sliders(visit):
    page = visit()
    before = page.locator("#retention polyline").get_attribute("points")
    page.click("#settings button")
    for scale in (4, 5, 4):
        set_number(page, "scale", scale)
        if page.locator("#retention polyline").get_attribute("points") != before:
            break
    assert f"a = {scale}" in page.locator("#retention").inner_text()


def test_two_visitors_at_once(visit):
    """Each sees only their own answer, and both get one."""
    one, two = visit(), visit()
    for page, preset in ((one, "Parallel"), (two, "All")):
        choose(page, preset)
        page.click("#ask")
    finished(one)
    finished(two)
    assert "Vanilla, threshold 0.9" in one.locator("#left h3").inner_text()
    assert "DPad, threshold 0.9" in two.locator("#left h3").inner_text()


def test_stop_ends_an_answer(visit):
    page = visit()
    choose(page, "Vanilla")
    page.click("#ask")
    page.wait_for_function("+(document.querySelector('#left .trace') || {dataset: {}}).dataset.forwards > 3")
    page.click("#stop")
    page.wait_for_timeout(1500)
    at = page.locator("#left .trace").get_attribute("data-forwards")
    page.wait_for_timeout(1500)
    assert page.locator("#left .trace").get_attribute("data-forwards") == at and int(at) < 256


def test_a_trace_is_saved_and_opened(visit, tmp_path):
    """The page's own file opens again, here and in `run.py trace`; another file is refused in a sentence."""
    page = visit()
    choose(page, "All")
    page.click("#ask")
    finished(page)
    page.wait_for_selector("#download")
    with page.expect_download() as download:
        page.click("#download")
    file = tmp_path / "trace.jsonl"
    download.value.save_as(file)
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"no": "trace"}\n')
    other = visit()
    other.set_input_files("#open input[type=file]", str(file))
    finished(other)
    assert other.locator("#left .answer").inner_text() == page.locator("#left .answer").inner_text()
    third = visit()
    third.set_input_files("#open input[type=file]", str(wrong))
    third.wait_for_selector('#message [role="alert"]')
    assert "wrong.jsonl, line 1: not a line of a trace" in third.locator("#message").inner_text()
    shown = subprocess.run([sys.executable, str(ROOT / "run.py"), "trace", str(file)], capture_output=True, text=True)
    assert shown.returncode == 0 and "DPad, threshold 0.9" in shown.stdout


def test_the_keyboard_is_enough(visit):
    """Tab reaches the question, the presets and the buttons; Space presses one."""
    page = visit()
    page.focus("#question textarea")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "ask":
            break
    assert page.evaluate("document.activeElement.id") == "ask"
    page.keyboard.press("Space")
    finished(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen(visit, scheme):
    """On a phone nothing sticks out sideways, and the canvas has fewer columns."""
    page = visit(viewport={"width": 380, "height": 800}, color_scheme=scheme)
    choose(page, "All")
    page.click("#ask")
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 381
    columns = page.evaluate("getComputedStyle(document.querySelector('#left .cells')).gridTemplateColumns")
    assert len(columns.split()) == 8
