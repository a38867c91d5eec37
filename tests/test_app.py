"""The web page in a real browser: ask, watch, compare, scrub, save, open, link; mistakes; visitors; phones; keyboards.

    bash tests/run.sh tests/test_app.py

Needs Chromium (Debian's package, or Chrome in the PATH) and demo/requirements.txt; without them it is skipped. Answers
are of 64 tokens, which a link sets: nothing here waits for more than it looks at.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import pytest
from helpers import ROOT
from PIL import Image

from dataset import arithmetic
from dpad.engine import completion, loading
from dpad.engine.fields import setting
from dpad.engine.methods import METHODS
from dpad.engine.rules import RULES
from dpad.engine.settings import RULE, SAMPLER
from dpad.interact.denoiser import MAX_QUESTION, Denoiser
from dpad.interact.trace import Tracer
from dream.settings import DreamSettings
from llada.settings import LLaDASettings
from sampler import AnchorSampler, AttentionSampler, GaussianSampler

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
LONG = 60_000  # milliseconds
CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")
SHORT = {"gen_length": 64, "dropout_strategy": "gaussian", "k_sigma": 3, "scale": 1.6, "early_termination": "on"}
PARALLEL = SHORT | {"threshold": 0.9}
VANILLA = {"gen_length": 64, "dropout_strategy": "null"}
LAPTOP = {"width": 1280, "height": 720}
PHONE = {"width": 390, "height": 844}


page_module = pytest.importorskip("dpad.interact.page", reason="demo/requirements.txt is not installed")
Page, PRESETS, EXAMPLES = page_module.Page, page_module.PRESETS, page_module.EXAMPLES
show_value = page_module.show_value
sync_api = pytest.importorskip("playwright.sync_api", reason="demo/requirements.txt is not installed")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")


# The page's program, in which every forward takes a tenth of a second while a file exists.
PROGRAM = """
import pathlib, runpy, sys, time
from dpad.engine.transformer import MaskedDiffusionModel

def hidden_states(*arguments, **options):
    if slow.exists():
        time.sleep(0.1)
    return compute(*arguments, **options)

slow = pathlib.Path(sys.argv.pop(1))
compute, MaskedDiffusionModel.hidden_states = MaskedDiffusionModel.hidden_states, hidden_states
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


@pytest.fixture(scope="module")
def slow_file(tmp_path_factory):
    return tmp_path_factory.mktemp("pace") / "slow"


@pytest.fixture
def slow(slow_file):
    """A file that slows the model down until the test removes it: on a busy machine a browser may need longer to show
    an answer than the model to decode it, and some tests look at what is not finished yet."""
    slow_file.touch()
    yield slow_file
    slow_file.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def address(tmp_path_factory, slow_file):
    """The page, served by a process of its own on a free port; nothing that visitors do may end in a traceback."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    log = tmp_path_factory.mktemp("page") / "log"
    with log.open("w") as file:
        command = [sys.executable, "-c", PROGRAM, str(slow_file), str(ROOT / "demo" / "app.py"), "--port", str(port)]
        server = subprocess.Popen(command, cwd="/", stdout=file, stderr=subprocess.STDOUT,
                                  env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
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
    """Open the page in a context of its own, with these settings in its link; requests elsewhere, failed ones and
    errors in the console fail the test."""
    pages, elsewhere, errors = [], [], []

    def open_page(choices=SHORT, viewport=LAPTOP, **options):
        page = browser.new_context(viewport=viewport, **options).new_page()
        page.set_default_timeout(LONG)
        page.on("request", lambda request: elsewhere.append(request.url)
                if not request.url.startswith((address, "data:", "blob:", address.replace("http", "ws"))) else None)
        page.on("response", lambda response: errors.append(f"{response.status} {response.url}")
                if response.status >= 400 else None)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}?{urlencode(choices)}" if choices else address)
        page.wait_for_selector("#ask")
        if "gen_length" in choices:  # the link has been followed
            has(page, f"document.querySelector('#gen_length input[type=number]')?.value == '{choices['gen_length']}'")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.context.close()
    assert not elsewhere and not errors


@pytest.fixture(scope="module")
def random_page(checkpoint_folder):
    """A page in this process, of a model with random weights."""
    return Page(Denoiser(loading.load(str(checkpoint_folder), device="cpu")))


def has(page, condition, arg=None):
    """Wait until a condition holds in the browser."""
    page.wait_for_function(condition, arg=arg)


def title_is(page, side, title):
    """Wait until a canvas says which method decodes it: until the first forward its title describes the masks."""
    has(page, "([side, title]) => (document.querySelector(`#${side} h3`) || {}).innerText == title", [side, title])


def preset_is(page, name):
    has(page, "name => (document.querySelector('#preset input:checked') || {value: ''}).value == name", name)


def type_number(page, field, value):
    number = page.locator(f"#{field} input[type=number]")
    number.fill(str(value))
    number.press("Tab")


def seek(page, position, side="left"):
    """Move the slider of the forwards; one under load may miss the first time."""
    for _ in range(5):
        type_number(page, "position", position)
        try:
            return page.wait_for_selector(f'#{side} .trace[data-forwards="{position}"]', timeout=LONG / 12)
        except sync_api.TimeoutError:
            continue
    raise AssertionError(f"the slider does not go to {position}")


def finished(page, side="left"):
    page.wait_for_selector(f'#{side} .trace[data-done="1"]')
    page.wait_for_selector("#ask:enabled")


def said(page):
    """The message above the canvases."""
    return page.wait_for_selector('#message [role="alert"]').inner_text()


pytestmark = [pytest.mark.browser, needs_browser]


# --- Without a browser ------------------------------------------------------------------------------------------------


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


def test_what_is_compared_with_what(random_page):
    """Guards comparisons of something with itself: what a visitor chose stands beside vanilla decoding, which keeps
    what is not one of the presets' settings; and what is vanilla already gets DPad."""
    values = {name: control.value for name, control in random_page.controls.items()}
    values |= {"dropout_strategy": "null", "threshold": 0.5, "cache": "dual", "block_length": 16, "factor": 0,
               "early_termination": False}
    vanilla, other = random_page.choose(tuple(values.values()), with_vanilla=True)
    assert vanilla == LLaDASettings(block_length=16)
    assert other == LLaDASettings(block_length=16, threshold=0.5, cache="dual")
    values |= {"threshold": 0, "cache": "none"}
    vanilla, other = random_page.choose(tuple(values.values()), with_vanilla=True)
    assert vanilla == LLaDASettings(block_length=16)
    assert other == LLaDASettings(block_length=16, early_termination=True, suffix_sampler=GaussianSampler(256, 3, 1.6))


def test_a_number_or_a_word(random_page):
    """Guards `refresh`: typed as text, shown as text, beside vanilla decoding, which caches nothing; a preset takes it
    back, and what is wrong is said beside the control."""
    values = {name: control.value for name, control in random_page.controls.items()}
    assert values["refresh"] == "always"
    for text, refresh in (("never", "never"), (" 3 ", 3), (3.0, 3), ("1", "always")):
        typed = tuple((values | {"cache": "dual", "refresh": text}).values())
        vanilla, other = random_page.choose(typed, with_vanilla=True)
        assert other.refresh == refresh and (vanilla.refresh, vanilla.cache) == ("always", "none")
    kept = random_page.denoiser.make_settings(random_page.read_choices(typed)).as_choices() | {"refresh": 3}
    assert random_page.fill(kept)[random_page.controls["refresh"]] == "3"
    settings = random_page.denoiser.make_settings(kept)
    link = dict(parse_qsl(random_page.denoiser.write_link(settings, "?").removeprefix("?")))
    assert link.pop("question") == "?" and random_page.denoiser.read_link(link) == settings.as_choices()
    assert random_page.denoiser.read_record(settings.to_json()) == settings.as_choices()
    assert random_page.preset_values("DPad", 256)["refresh"] == "always"
    for wrong in ("often", "0", ["never"], None, "--5"):
        changes = random_page.review(True, "", *(values | {"cache": "dual", "refresh": wrong}).values())
        assert changes[random_page.wrong] == "refresh", wrong


def test_a_choice_brings_its_own_parameters(random_page):
    """Guards controls that hold what an earlier strategy or rule left there: DPad's window of 256 would keep the whole
    suffix for any other, and a threshold clashes with a rule that has none. A preset is its method, and is lit."""
    values = {name: control.value for name, control in random_page.controls.items()} | {"threshold": 0.7}

    def choices_with(changes):
        shown = {name: show_value(random_page.settings[name], value) for name, value in changes.items()}
        return random_page.read_choices(tuple((values | shown).values()))

    def choose(part, name):
        changes = random_page.part_values(part, name, 256) | {part.selector.name: name}
        return random_page.denoiser.make_settings(choices_with(changes))

    for name, sampler in (("attention", AttentionSampler(8, 64)), ("anchor", AnchorSampler(64)),
                          ("streaming", AnchorSampler(96)), ("ssm", AnchorSampler(64, 32))):
        assert choose(SAMPLER, name).suffix_sampler == sampler
    for name, rule in RULES.items():
        assert choose(RULE, name).rule == rule() and choose(RULE, name).threshold is None
    for preset, name in PRESETS.items():
        method = METHODS[name].choices(256, model=random_page.denoiser.loaded.checkpoint)
        choices = choices_with(random_page.preset_values(preset, 256))
        settings = random_page.denoiser.make_settings(choices)
        assert settings == LLaDASettings.from_choices(method), preset
        assert random_page.preset_of(choices, settings) == preset
        choices |= {"window": 99} if "window" in choices else {"cache": "dual"}
        assert random_page.preset_of(choices, random_page.denoiser.make_settings(choices)) is None


@pytest.mark.parametrize("changes", [{}, {"gen_length": 64, "block_length": 16}, {"temperature": 0.5, "seed": 3}])
def test_links_and_traces_reproduce_settings(random_page, changes):
    """A law over all methods: what a link or a trace's first line says of settings is these settings again."""
    denoiser = random_page.denoiser
    for method in METHODS.values():
        choices = method.choices(changes.get("gen_length", 256), model=denoiser.loaded.checkpoint) | changes
        settings = LLaDASettings.from_choices(choices)
        link = dict(parse_qsl(denoiser.write_link(settings, "Why? & how").removeprefix("?"), keep_blank_values=True))
        assert link.pop("question") == "Why? & how"
        for read in (denoiser.read_link(link), denoiser.read_record(settings.to_json())):
            assert denoiser.make_settings(read) == settings, method.name
    settings = LLaDASettings(steps=64)
    assert denoiser.make_settings(denoiser.read_record(settings.to_json())) == settings


@pytest.mark.parametrize("text, words", [
    ("gen_length=1024", "gen_length is 1024; on this page it must be at most 512"),
    ("block_length=7", "block_length is 7; it must divide gen_length (256)"),
    ("threshold=x", "threshold is 'x'; it must be a finite number of at least 0 and at most 1"),
    ("dropout_strategy=gausian", "dropout_strategy is 'gausian'; it must be one of"),
    ("scale=2", "scale is 2.0, but dropout_strategy null does not use it"),
    ("colour=red", "colour: not a setting of LLaDA, which has gen_length"),
    ("early_termination=perhaps", "early_termination is 'perhaps'; it must be on or off"),
])
def test_a_link_is_checked(random_page, text, words):
    """Guards the page against links from anywhere: one sentence with the setting, its value and what is allowed."""
    with pytest.raises(ValueError, match=re.escape(words)):
        random_page.denoiser.read_link(dict(parse_qsl(text)))


@pytest.mark.parametrize("junk", [None, "x", -1, 10**30, 0.5, [], {}, True, float("nan")], ids=repr)
def test_controls_may_hold_anything(random_page, junk):
    """Guards the log: whatever a browser sends for a setting is used or said in a sentence, never a traceback."""
    values = {name: control.value for name, control in random_page.controls.items()}
    assert random_page.use_preset("DPad", junk) and random_page.length_of(junk)
    for name in values:
        shown = random_page.review(False, "", *(values | {name: junk}).values())
        assert shown[random_page.retention]
        try:
            random_page.choose(tuple((values | {name: junk}).values()), with_vanilla=True)
        except ValueError as error:
            label = random_page.settings[name].label
            assert str(error).split()[0] in {label, "window", "block_size", "number"}, error


def test_a_trace_of_another_family_is_shown(random_page, random_dream, checkpoint_folder, tmp_path):
    """Guards traces from elsewhere: the canvas and the question are shown, and it is said why the controls are not."""
    loaded = random_page.denoiser.loaded
    settings = loaded.family.settings(gen_length=32, steps=2)
    tracer = Tracer(loaded, "Why?", settings)
    trace = tracer.finish(completion.complete(loaded, ["Why?"], settings, streamer=tracer)[0])
    trace.head |= {"model": "dream-tiny", "settings": DreamSettings(gen_length=32).to_json()}
    trace.write(tmp_path / "dream.jsonl")
    shown = random_page.open_trace(str(tmp_path / "dream.jsonl"))
    assert shown[random_page.question] == "Why?" and 'data-done="1"' in shown[random_page.left]
    assert "dream.jsonl: a trace of dream-tiny. The controls cannot show its settings: " in shown[random_page.message]
    assert "top_p" in shown[random_page.message] and random_page.preset not in shown


def test_the_example_where_dropout_fails():
    """Guards what its button promises: the whole suffix solves a problem of arithmetic-500, and parallel DPad not."""
    loaded = loading.load("tiny", device="cpu")
    question = EXAMPLES["Where dropout fails"]
    [problem] = [entry for entry in arithmetic.take(500, 2024, split="test") if entry["question"] in question]
    is_right = {}
    for name in ("vanilla-stop", "parallel", "dpad", "dpad-parallel", "dpad-parallel-cache"):
        settings = LLaDASettings.from_choices(METHODS[name].choices(256, model=loaded.checkpoint))
        [answer] = completion.complete(loaded, [loaded.chat(question)], settings)
        is_right[name] = arithmetic.is_right(problem, answer.text)
    assert is_right == {
        "vanilla-stop": True, "parallel": True, "dpad": True, "dpad-parallel": False, "dpad-parallel-cache": False}


# --- Asking and watching ----------------------------------------------------------------------------------------------


def test_the_empty_page_explains_itself(visit):
    """The model has a name and a size; an idle canvas says what the parts are, and follows the settings until the
    first question; examples fill the question; nothing is to be stopped, played or saved."""
    page = visit({})
    assert "LLaDA-tiny, 3 M parameters" in page.inner_text("#head")
    idle = page.locator("#left .idle")
    assert "The block: 32 masks" in idle.inner_text() and "The suffix: 224 positions" in idle.inner_text()
    kept = page.locator("#left i.kept").count()
    assert f"The {kept} blue ones are kept" in idle.inner_text()
    assert page.locator("#left i.dropped").count() == 224 - kept
    assert page.locator("#stop").is_disabled() and page.locator("#play").is_disabled()
    assert not page.locator("#download").count() and not page.locator("#gif").count()
    for name, text in EXAMPLES.items():
        page.get_by_role("button", name=name, exact=True).click()
        has(page, "text => document.querySelector('#question textarea').value == text", text)
    assert "Enter asks, Shift+Enter breaks the line" in page.locator("#question textarea").get_attribute("placeholder")
    page.get_by_role("radio", name="Vanilla", exact=True).check()
    has(page, "document.querySelectorAll('#left i.kept').length == 224")
    has(page, "document.querySelector('#compare').innerText.trim() == 'Compare with DPad'")
    legend = page.inner_text("#legend")
    for words in ("decoded", "mask of the block", "suffix kept", "suffix dropped", "after the answer's end"):
        assert words in legend


def test_the_canvas_changes_while_the_model_decodes(visit, slow):
    """Ask with DPad on a laptop: button and first cells are on one screen; first masks and two kinds of suffix, then
    more and more tokens, at last the answer above the cells, and one line for what was never computed."""
    page = visit(SHORT | {"gen_length": 128})
    page.click("#ask")
    page.wait_for_selector("#stop:enabled")
    has(page, """() => {
        const count = kind => document.querySelectorAll(`#left .trace[data-done="0"] .cells i.${kind}`).length
        return count('block') && count('kept') && count('dropped') && count('decided')
    }""")
    boxes = [page.locator(place).bounding_box() for place in ("#ask", "#left .answer", "#left .cells i >> nth=31")]
    assert all(box["y"] >= 0 and box["y"] + box["height"] <= 720 for box in boxes)
    assert "░" in page.inner_text("#left .answer") and "suffix kept" in page.inner_text("#left .numbers")
    first = int(page.locator("#left .trace").get_attribute("data-forwards"))
    has(page, f"+document.querySelector('#left .trace').dataset.forwards > {first}")
    slow.unlink()
    finished(page)
    assert "####" in page.inner_text("#left .answer") and "suffix kept" not in page.inner_text("#left .numbers")
    decided = page.locator("#left .cells i.decided").count()
    assert page.locator("#left .cells i").count() == decided < 128
    numbers = [int(number) for number in re.findall(r"\d+", page.inner_text("#left .rest"))]
    assert "never computed" in page.inner_text("#left .rest") and sum(numbers) == 128 - decided
    label = page.locator("#left .cells i.decided").first.get_attribute("title")
    assert "forward" in label and "confidence" in label


def test_a_finished_answer_can_be_played_saved_and_opened(visit, tmp_path):
    """By the slider and by playing; as a GIF, and as a trace that opens again with its question and settings, here and
    in `run.py trace`. Another file is refused in a sentence."""
    page = visit(PARALLEL | {"question": "Mia has 20 eggs. She uses 8 eggs. How many eggs does Mia have now?"})
    page.click("#ask")
    finished(page)
    answer = page.inner_text("#left .answer")
    total = page.locator("#left .trace").get_attribute("data-forwards")
    seek(page, 1)
    page.click("#play")
    page.wait_for_selector(f'#left .trace[data-forwards="{total}"]')
    has(page, "document.querySelector('#play').innerText.trim() == 'Play'")
    for button, name in (("#download", "trace.jsonl"), ("#gif", "dpad.gif")):
        with page.expect_download() as download:
            page.click(button)
        download.value.save_as(tmp_path / name)
    with Image.open(tmp_path / "dpad.gif") as image:
        assert image.n_frames > 2
    shown = subprocess.run([sys.executable, str(ROOT / "run.py"), "trace", str(tmp_path / "trace.jsonl")],
                           capture_output=True, text=True)
    assert shown.returncode == 0 and "DPad, threshold 0.9" in shown.stdout

    other = visit({})
    other.set_input_files("#main input[type=file]", str(tmp_path / "trace.jsonl"))
    finished(other)
    assert other.inner_text("#left .answer") == answer
    preset_is(other, "Parallel + DPad")
    assert other.input_value("#question textarea").startswith("Mia has 20 eggs")
    assert other.input_value("#gen_length input[type=number]") == "64"
    (tmp_path / "wrong.jsonl").write_text('{"no": "trace"}\n')
    other.set_input_files("#main input[type=file]", str(tmp_path / "wrong.jsonl"))
    assert "wrong.jsonl, line 1: not a line of a trace" in said(other)


def test_attention_lies_over_the_canvas(visit):
    """Ticked before asking: bars on the cells, another layer's by the slider, none when off; then a sentence."""
    page = visit()
    assert not page.locator("#layer").is_visible()
    page.locator("#attention input").check()
    page.wait_for_selector("#layer")
    page.click("#ask")
    finished(page)
    bars = "[...document.querySelectorAll('#left .cells i')].map(cell => getComputedStyle(cell).boxShadow).join()"
    page.wait_for_selector('#left .cells i[style*="--bar"]')
    mean = page.evaluate(bars)
    assert "attention to prompt" in page.inner_text("#left .numbers")
    assert "attention that the block pays" in page.inner_text("#legend")
    assert "attention" in page.locator("#left .cells i").first.get_attribute("title")
    type_number(page, "layer", 2)
    has(page, f"before => {bars} != before", mean)
    seek(page, 5)
    page.wait_for_selector('#left .trace[data-forwards="5"] .cells i[style*="--bar"]')
    page.locator("#attention input").uncheck()
    has(page, "!document.querySelector('#left .cells i[style*=\"--bar\"]')")
    page.click("#ask")
    page.wait_for_selector('#left .trace[data-done="0"]')
    finished(page)
    page.locator("#attention input").check()
    has(page, "document.querySelector('#left').innerText.includes('ask again')")


def test_comparison(visit):
    """Vanilla and DPad on one question, both named, on one clock and one scale of colours; their work in one chart, and
    a sentence about both at the end."""
    page = visit(PARALLEL)
    page.click("#compare")
    page.wait_for_selector("#right .trace")
    finished(page, "right")
    assert page.inner_text("#left h3") == "Vanilla"
    assert page.inner_text("#right h3") == "DPad, threshold 0.9, early termination"
    verdict = page.inner_text("#work .verdict")
    assert verdict.startswith("DPad, threshold 0.9, early termination: ") and "faster than vanilla" in verdict
    assert "of the positions in each forward" in verdict
    assert page.locator("#left .trace").get_attribute("data-forwards") == "64"
    assert int(page.locator("#right .trace").get_attribute("data-forwards")) < 40
    assert page.locator("#work polyline").count() == 2
    for words in ("seconds", "positions computed", "Vanilla: ", "DPad, threshold 0.9, early termination: "):
        assert words in page.inner_text("#work")
    red = "cells => Math.min(...cells.map(cell => +getComputedStyle(cell).backgroundColor.match(/\\d+/)[0]))"
    latest = [page.eval_on_selector_all(f"#{side} .cells i.decided", red) for side in ("left", "right")]
    assert latest[0] == 42 < latest[1] - 50, "the same colour is the same moment on both sides"
    page.get_by_role("radio", name="Vanilla", exact=True).check()
    has(page, "document.querySelector('#compare').innerText.trim() == 'Compare with DPad'")
    assert page.locator('#left .trace[data-done="1"]').count(), "settings change the canvas only before a question"


def test_vanilla_is_compared_with_dpad(visit, slow):
    page = visit(VANILLA)
    has(page, "document.querySelector('#compare').innerText.trim() == 'Compare with DPad'")
    page.click("#compare")
    page.wait_for_selector("#right .trace")
    title_is(page, "left", "Vanilla")
    title_is(page, "right", "DPad, early termination")
    page.click("#stop")
    page.wait_for_selector("#stop:disabled")


def test_stop_is_for_what_runs(visit, slow):
    """Enabled only while something runs; after it nothing changes any more, and the page can be asked again."""
    page = visit(VANILLA | {"gen_length": 512})
    assert page.locator("#stop").is_disabled() and page.locator("#ask").is_enabled()
    page.click("#ask")
    page.wait_for_selector("#stop:enabled")
    has(page, "+(document.querySelector('#left .trace') || {dataset: {}}).dataset.forwards > 3")
    assert page.locator("#ask").is_disabled() and page.locator("#compare").is_disabled()
    page.click("#stop")
    page.wait_for_selector("#stop:disabled")
    page.wait_for_selector("#ask:enabled")
    slow.unlink()
    at = page.locator("#left .trace").get_attribute("data-forwards")
    page.wait_for_timeout(800)
    assert page.locator("#left .trace").get_attribute("data-forwards") == at and int(at) < 512


def test_a_question_asked_at_once_is_answered(visit):
    """However soon after an answer the buttons let a visitor ask again, it counts: this one asks at the very moment."""
    page = visit(PARALLEL)
    page.evaluate("""() => {
        window.begun = 0
        const ask = document.querySelector('#ask')
        const press = () => { if (window.begun < 6 && !ask.disabled) { window.begun++; ask.click() } }
        new MutationObserver(press).observe(ask, {attributes: true})
        press()
    }""")
    has(page, "window.begun == 6")
    finished(page)
    assert page.locator("#stop").is_disabled() and not page.inner_text("#message").strip()


def test_the_keyboard_is_enough(visit):
    """Shift+Enter breaks the line and Enter asks; Tab reaches the buttons, and Space presses one."""
    page = visit(PARALLEL)
    page.focus("#question textarea")
    page.keyboard.press("Control+A")
    page.keyboard.type("Mia has 20 eggs.")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("She uses 8 eggs. How many eggs does Mia have now?")
    assert page.input_value("#question textarea").count("\n") == 1 and page.locator("#stop").is_disabled()
    page.keyboard.press("Enter")
    finished(page)
    assert "12" in page.inner_text("#left .answer") and page.input_value("#question textarea").count("\n") == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "ask"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "compare"
    page.keyboard.press("Space")
    page.wait_for_selector("#right .trace")
    page.keyboard.press("Tab")
    finished(page, "right")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.closest('[id]').id"))
    assert {"open", "link", "play", "download", "gif"} <= reached


# --- Settings and mistakes --------------------------------------------------------------------------------------------


def test_presets_links_and_errors_follow_the_controls(visit):
    """A strategy chosen by hand leaves no preset lit, and only its own parameters are shown; a value that is not
    allowed is said beside its control; the link reproduces what is set, and a spoilt one says what is wrong."""
    page = visit(PARALLEL)
    preset_is(page, "Parallel + DPad")
    page.locator("#dropout_strategy").get_by_label("uniform", exact=True).check()
    preset_is(page, "")
    page.wait_for_selector("#number.wrong")
    assert "num_tokens is 0, so that dropout_strategy uniform would keep no suffix at all" in page.inner_text("#number")
    assert not page.locator("#scale").is_visible() and page.locator("#number").is_visible()
    type_number(page, "number", 12)
    has(page, "!document.querySelector('.wrong')")
    assert "probability to be kept" in page.inner_text("#retention")
    page.locator("#dropout_strategy").get_by_label("gaussian", exact=True).check()
    page.wait_for_selector("#scale")
    type_number(page, "scale", -1)
    page.wait_for_selector("#scale.wrong")
    assert "scale is -1; it must be a finite number above 0" in page.inner_text("#scale")
    page.click("#ask")
    assert said(page) == "scale is -1; it must be a finite number above 0"
    assert page.locator("#left .idle").count() and page.locator("#stop").is_disabled()
    type_number(page, "scale", 2.3)
    has(page, "!document.querySelector('.wrong')")
    assert "a = 2.3" in page.inner_text("#retention")

    page.click("#link")
    has(page, "location.search.includes('scale=2.3')")
    other = visit(dict(parse_qsl(page.evaluate("location.search.slice(1)"))))
    assert other.input_value("#scale input") == "2.3" and other.input_value("#threshold input[type=number]") == "0.9"
    assert other.input_value("#question textarea") == page.input_value("#question textarea")
    spoilt = visit({"threshold": 7})
    assert said(spoilt) == ("This page's address cannot be used: threshold is 7.0; it must be a finite number of at "
                            "least 0 and at most 1")
    preset_is(spoilt, "DPad")


def test_questions_are_answered_whole_or_refused(visit):
    """An empty question and one that is too long: a sentence each, and nothing is cut; the next answer works, and what
    a visitor types is text."""
    page = visit(PARALLEL)
    page.fill("#question textarea", "   ")
    page.click("#ask")
    assert "the question is empty" in said(page)
    page.fill("#question textarea", "x" * (MAX_QUESTION + 1))
    page.click("#ask")
    has(page, "document.querySelector('#message').innerText.includes('characters')")
    assert said(page) == f"the question has {MAX_QUESTION + 1} characters; it must have at most {MAX_QUESTION}"
    assert len(page.input_value("#question textarea")) == MAX_QUESTION + 1
    page.fill("#question textarea", "<img src=x onerror=alert(1)> has 3 apples. How many apples?")
    page.wait_for_selector("#ask:enabled")
    page.click("#ask")
    finished(page)
    has(page, "!document.querySelector('#message').innerText.trim()")
    assert page.locator("#main img").count() == 0


# --- Visitors, screens, colours ---------------------------------------------------------------------------------------


def test_visitors_and_their_queue(visit, slow):
    """Two are answered at the same time, each with their own settings; a third waits, is told so, may leave the
    queue, and is answered when there is room."""
    dpad = {name: value for name, value in SHORT.items() if name != "early_termination"}
    busy = [visit(choices | {"gen_length": 512}) for choices in (VANILLA, dpad)]
    third = visit(PARALLEL)
    for page in busy:
        page.click("#ask")
        page.wait_for_selector('#left .trace[data-done="0"]')
    for page, title in zip(busy, ("Vanilla", "DPad"), strict=True):
        title_is(page, "left", title)
    third.click("#ask")
    third.wait_for_selector("#message .waiting")
    third.wait_for_selector("#stop:enabled")
    third.click("#stop")
    third.wait_for_selector("#ask:enabled")
    third.click("#ask")
    third.wait_for_selector("#message .waiting")
    for page in busy:
        page.click("#stop")
        page.wait_for_selector("#stop:disabled")
    slow.unlink()
    finished(third)
    assert third.inner_text("#left h3") == "DPad, threshold 0.9, early termination"
    assert not third.locator("#message .waiting").count()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(visit, scheme):
    """Asking brings the canvas into view; a comparison is stacked; no token is cut, and nothing sticks out sideways."""
    page = visit(PARALLEL, PHONE, color_scheme=scheme)
    assert page.locator("#left .cells").first.bounding_box()["y"] > 500
    page.click("#compare")
    page.wait_for_selector("#right .trace")
    has(page, "document.querySelector('#player').getBoundingClientRect().top < 100")
    finished(page, "right")
    left, right = (page.locator(f"#{side} .trace").bounding_box() for side in ("left", "right"))
    assert right["y"] >= left["y"] + left["height"] and left["width"] == right["width"] > 340
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    wide = """[...document.querySelectorAll('#main *')].filter(part => part.checkVisibility() &&
        part.getBoundingClientRect().right > innerWidth + 1).map(part => part.outerHTML.slice(0, 99))"""
    assert page.evaluate(wide) == []
    cut = "cells => cells.filter(cell => cell.scrollWidth > cell.clientWidth).map(cell => cell.innerText)"
    assert page.eval_on_selector_all(".cells i.decided", cut) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(visit, scheme):
    """WCAG's 4.5 : 1, computed from the colours as they are drawn: empty, while decoding, compared with bars of
    attention, and with errors."""
    page = visit(PARALLEL, color_scheme=scheme)
    page.click("#more-settings button")
    page.wait_for_selector("#seed")

    def check(state, count):
        found = page.evaluate(CONTRAST, 4.5)
        assert found["faint"] == [] and found["count"] > count, f"{state}: {found}"

    check("empty", 100)
    page.locator("#attention input").check()
    page.click("#compare")
    page.wait_for_selector("#right .trace")
    check("decoding", 100)
    finished(page, "right")
    check("compared", 200)
    type_number(page, "scale", -1)
    page.wait_for_selector("#scale.wrong")
    page.fill("#question textarea", "")
    page.click("#ask")
    said(page)
    check("mistaken", 100)
