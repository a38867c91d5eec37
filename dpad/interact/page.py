"""The page of the web UI: its controls, which follow from the settings' fields, its events, and the replay.

Imported by demo/app.py, which serves it; needs Gradio (demo/requirements.txt).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from dpad.engine.fields import Setting, integer_or_text, settings_of
from dpad.engine.methods import METHODS
from dpad.engine.settings import PART_SETTINGS, PARTS, SAMPLER, DecodingSettings, Part, part_defaults
from dpad.interact.canvas import canvas_after, describe_traces
from dpad.interact.denoiser import MAX_GEN_LENGTH, MAX_VISITORS, AnswerThread, Denoiser, read_uploaded
from dpad.interact.guard import Streams
from dpad.interact.markup import (
    duration_of,
    render_canvas,
    render_curve,
    render_idle,
    render_legend,
    render_message,
    render_work,
)
from dpad.interact.trace import Trace

REFRESH = 0.12  # seconds between two pictures while a model decodes
PATIENCE = 5.0  # seconds for which a job waits for somebody to listen, before it begins and later
GONE = "this trace is no longer kept: ask again, or open its file again"
REPLAY_FRAMES = 60
LENGTH_STEP = 32

PRESETS = {  # what the page calls some of the methods
    "Vanilla": "vanilla",
    "DPad": "dpad",
    "Parallel": "parallel",
    "Parallel + DPad": "dpad-parallel",
    "All": "dpad-parallel-cache",
    "Streaming-dLLM": "streaming",
    "SSM": "ssm",
    "Pruned by score": "attention",
}
EXAMPLES = {  # by what their buttons say
    "3 bags of apples": "Tom has 3 bags with 4 apples in each bag. He finds 5 more apples. How many apples does Tom "
                        "have now?",
    "24 rolls": "Mia bakes 24 rolls. She sells 9 rolls. How many rolls does Mia have now?",
    "3 times as many": "Ben saves 12 dollars. Ella saves 3 times as many dollars as Ben. How many dollars does Ella "
                       "have?",
    # Of arithmetic-500, as evaluations ask it: LLaDA-tiny solves it with the whole suffix, one token a forward or
    # several, and with DPad only one token a forward.
    "Where dropout fails": "Question: For 2 days Lucy rides 2 miles a day. On Friday she rides 58 more miles. She "
                           "wants to ride 65 miles in all. How many more miles does she have to ride?\nAnswer:",
}

# What the browser does itself. On a narrow screen a question brings the canvas into view. Only the browser knows when
# an answer's event is over: its last picture comes before, and a question asked in between would be lost.
WAITING = json.dumps(render_message("waiting for a turn …", "note waiting"))
ABLE = "(on => ({__type__: 'update', interactive: on}))"
BEGIN = """() => {
    if (!document.querySelector('#stop').disabled) return Array(4).fill({__type__: 'update'});
    if (matchMedia('(max-width: 700px)').matches)
        document.querySelector('#player').scrollIntoView({behavior: 'smooth'});
    return [ABLE(false), ABLE(false), ABLE(true), WAITING];
}""".replace("ABLE", ABLE).replace("WAITING", WAITING)
READY = "() => [ABLE(true), ABLE(true), ABLE(false)]".replace("ABLE", ABLE)
DRAW = f"() => {json.dumps(render_message('drawing the GIF …', 'note waiting'))}"
FOLLOW = """(query) => {
    if (!query) return;
    history.replaceState(null, '', query);
    navigator.clipboard?.writeText(location.href).catch(() => {});
}"""
FETCH = "() => document.querySelector('#gif-file').click()"
FOLD = "() => { document.body.classList.toggle('no-panel') }"


# --- Controls ---------------------------------------------------------------------------------------------------------

OFF = "off"  # of an optional choice; an optional number is off at 0


# Take what a visitor enters as it is. The settings say what is allowed, in a sentence beside the control; Gradio's own
# checks end in a traceback in the log. (Subclasses would do, but for each Gradio writes a file beside this one.)
for kind in (gr.Number, gr.Radio, gr.Slider):
    kind.preprocess = lambda self, payload: payload


def make_control(setting: Setting, value: Any) -> Any:
    """The part of the page with which a visitor chooses a setting's value."""
    label = setting.label.replace("_", " ").capitalize()
    if setting.unit and setting.unit not in label:
        label += f" ({setting.unit})"
    common = {"label": label, "info": describe(setting), "elem_id": setting.name}
    value = show_value(setting, value)

    if setting.kind is bool:
        return gr.Checkbox(value=value, **common)

    if setting.choices:
        names = [name for name in setting.choices if name != "random" or setting is not SAMPLER.selector]
        return gr.Radio([OFF, *names] if setting.optional else names, value=value, **common)

    if setting.words:
        return gr.Textbox(value=value, max_lines=1, **common)

    minimum, maximum, step = limits(setting)
    if minimum is None or maximum is None:
        return gr.Number(value=value, precision=0 if setting.kind is int else None, step=step, **common)
    return gr.Slider(minimum, maximum, value=value, step=step, **common)


def describe(setting: Setting) -> str:
    """What stands under a control's name."""
    return setting.help[:1].upper() + setting.help[1:]


def limits(setting: Setting) -> tuple[float | None, float | None, float]:
    """The ends and the step of a number's slider; where there is no end, there is no slider."""
    if setting.name == "gen_length":
        return LENGTH_STEP, MAX_GEN_LENGTH, LENGTH_STEP

    minimum = setting.minimum if setting.above is None else setting.above
    maximum = MAX_GEN_LENGTH if setting.unit == "tokens" else setting.maximum
    return 0 if setting.optional else minimum, maximum, 1 if setting.kind is int else 0.05


def show_value(setting: Setting, value: Any) -> Any:
    """A setting's value as its control holds it."""
    if value is None:
        return OFF if setting.choices else 0
    return str(value) if setting.words else value


def read_value(setting: Setting, value: Any) -> Any:
    """The value that a control holds as the setting takes it; it is not checked."""
    if setting.optional and not isinstance(value, bool) and value == show_value(setting, None):
        return None
    if setting.words and isinstance(value, str):
        return integer_or_text(value.strip())
    if setting.kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


# --- The page ---------------------------------------------------------------------------------------------------------


class Page:
    """The page of a Denoiser, as gradio.Blocks in `blocks`. Its methods return or yield {part: its new value}."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.streams = Streams()
        self.family = denoiser.loaded.family.settings
        self.settings = {setting.name: setting for setting in self.family.choices()}
        self.main = self._main_settings()
        with gr.Blocks(title="DPad: watch suffix dropout", analytics_enabled=False, fill_width=True,
                       delete_cache=(3600, 3600)) as self.blocks:
            self.lay_out()
            self.connect()
        self.blocks.queue(default_concurrency_limit=8, max_size=32)

    # --- Settings ---

    def _main_settings(self) -> list[str]:
        """What comes first: the answer's length, the settings of suffix dropout, and those that the presets change."""
        fields = [setting.name for setting in settings_of(self.family)]
        dropout = [SAMPLER.selector.name, *SAMPLER.settings]
        presets = [METHODS[name].choices(MAX_GEN_LENGTH) for name in PRESETS.values()]
        changed = [name for name in fields if len({preset.get(name) for preset in presets}) > 1]
        return ["gen_length", *dropout, *changed]

    def preset_values(self, preset: str, gen_length: int) -> dict[str, Any]:
        """What a preset says of the main settings, the rule, the soft suffix and `refresh`; parameters of others are
        left out."""
        values = METHODS[PRESETS[preset]].choices(gen_length, model=self.denoiser.loaded.checkpoint)
        parameters = part_defaults(values)
        names = {*self.main, *(part.selector.name for part in PARTS), *parameters, "refresh"}
        values = self.family().as_choices() | parameters | values
        return {name: value for name, value in values.items() if name in names}

    def part_values(self, part: Part, name: Any, gen_length: int) -> dict[str, Any]:
        """The parameters that belong to a strategy, a rule or a soft suffix when it is chosen. Settings of the family
        that have the same name are off beside others: a threshold beside a rule without one."""
        own = {setting.name: setting.default for setting in settings_of(self.family)}
        values = part.defaults({part.selector.name: name, "gen_length": gen_length})
        return {name: own[name] for name in part.settings if name in own} | values

    def read_choices(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """What the controls say, without the parameters of other dropout strategies and rules."""
        return self.applicable({name: read_value(self.settings[name], value)
                                for name, value in zip(self.controls, values)})

    def applicable(self, choices: dict[str, Any]) -> dict[str, Any]:
        """The choices without the parameters of dropout strategies and rules that are not chosen."""
        used = self.used(choices)
        return {name: value for name, value in choices.items() if name not in PART_SETTINGS or name in used}

    def used(self, choices: dict[str, Any]) -> set[str]:
        """The settings that apply: the family's own, and the parameters of what is chosen; ValueError where a choice is
        none."""
        parameters = part_defaults(choices | {"gen_length": self.length_of(choices["gen_length"])})
        return {*parameters, *(setting.name for setting in settings_of(self.family))}

    def vanilla_choices(self, choices: dict[str, Any]) -> dict[str, Any]:
        """Vanilla decoding to compare with: it keeps the choices that all models share, except what presets change."""
        names = {setting.name for setting in settings_of(DecodingSettings)}
        shared = {name: value for name, value in choices.items() if name in names}
        return shared | self.preset_values("Vanilla", choices["gen_length"])

    def preset_of(self, choices: dict[str, Any], settings: DecodingSettings) -> str | None:
        """The preset that these settings are; None where they are none."""
        for preset in PRESETS:
            same = self.applicable(choices | self.preset_values(preset, settings.gen_length))
            try:
                if self.denoiser.make_settings(same) == settings:
                    return preset
            except ValueError:  # another choice does not go with this preset
                continue
        return None

    def fill(self, choices: dict[str, Any]) -> dict[Any, Any]:
        """The controls for choices, and the preset that they are."""
        values = {name: setting.default for name, setting in self.settings.items()} | part_defaults(choices) | choices
        settings = self.denoiser.make_settings(self.applicable(values))
        shown = {self.controls[name]: show_value(self.settings[name], value) for name, value in values.items()}
        return shown | {self.preset: self.preset_of(values, settings)}

    # --- Layout ---

    def lay_out(self) -> None:
        """Place the parts: on a wide screen the settings stand beside everything else, on a narrow one below it."""
        values = self.preset_values("DPad", self.settings["gen_length"].default)
        self.start = self.denoiser.make_settings(self.applicable(values))
        with gr.Row(elem_id="page"):
            with gr.Column(elem_id="main", min_width=0):
                self.lay_out_question()
                self.message = gr.HTML("", elem_id="message")
                self.lay_out_player()
                self.work = gr.HTML("", elem_id="work")
                self.legend = gr.HTML(render_legend(), elem_id="legend")
                with gr.Row(elem_id="canvases"):
                    self.left = gr.HTML(self.draw_idle(self.start), elem_id="left")
                    self.right = gr.HTML("", elem_id="right", visible=False)
            with gr.Column(elem_id="panel", min_width=0):
                self.lay_out_settings(values)
                self.lay_out_attention()
        self.shown = gr.State("")  # the key of what the player shows: one finished trace, or the two of a comparison
        self.is_idle = gr.State(True)  # until the first question or trace
        self.wrong = gr.State("")  # the setting beside which an error stands

    def lay_out_question(self) -> None:
        with gr.Row(elem_id="head"):
            gr.HTML(f"""<div class="dpad"><h1>DPad: watch suffix dropout</h1><p>
                <b>{escape(self.denoiser.model_words)}</b>, starts from masks and decodes them block by block, the
                tokens that it is surest of first. The <i>suffix</i>, the masks after the block, is scratch space: DPad
                computes only a few of them.</p></div>""")
            self.fold = gr.Button("Settings", size="sm", scale=0, min_width=90, elem_id="fold")
        with gr.Row(elem_id="asking"):
            self.question = gr.Textbox(
                show_label=False, label="Question", lines=1, max_lines=6, value=next(iter(EXAMPLES.values())),
                placeholder="A question. Enter asks, Shift+Enter breaks the line", elem_id="question", scale=1,
                min_width=260, container=False)
            self.ask = gr.Button("Ask", variant="primary", elem_id="ask", scale=0, min_width=90)
            self.compare = gr.Button("Compare with vanilla", elem_id="compare", scale=0, min_width=190)
            self.stop = gr.Button("Stop", elem_id="stop", scale=0, min_width=80, interactive=False)
        with gr.Row(elem_id="chips"):
            self.examples = {gr.Button(name, size="sm", scale=0, min_width=0, elem_classes="chip"): text
                             for name, text in EXAMPLES.items()}
            self.opened = gr.UploadButton("Open a trace", file_types=[".jsonl"], size="sm", scale=0, min_width=0,
                                          elem_id="open", elem_classes="link")
            self.link = gr.Button("Link to these settings", size="sm", scale=0, min_width=0, elem_id="link",
                                  elem_classes="link")
            self.query = gr.Textbox(visible=False)  # of the link, for the browser
        self.preset = gr.Radio(list(PRESETS), value="DPad", show_label=False, label="Decoding", elem_id="preset",
                               container=False)

    def lay_out_player(self) -> None:
        with gr.Row(elem_id="player"):
            self.play = gr.Button("Play", min_width=80, scale=0, elem_id="play", interactive=False)
            self.position = gr.Slider(0, 1, value=0, step=1, label="Forward", elem_id="position", scale=1,
                                      min_width=160, buttons=[], interactive=False)
            with gr.Row(visible=False, elem_id="saves", scale=0) as self.saves:
                self.download = gr.DownloadButton("Save trace", scale=0, min_width=100, elem_id="download")
                self.gif = gr.Button("Save GIF", scale=0, min_width=90, elem_id="gif")
            self.gif_file = gr.DownloadButton("GIF", elem_id="gif-file", elem_classes="unseen")
        self.clock = gr.Timer(0.1, active=False)

    def lay_out_settings(self, values: dict[str, Any]) -> None:
        more = [name for name in self.settings if name not in self.main]
        self.controls: dict[str, Any] = {}
        self.retention = gr.HTML(self.draw_curve(self.start), elem_id="retention")
        with gr.Accordion("Settings", open=True, elem_id="settings"):
            self._make_controls(self.main, values)
        with gr.Accordion("More settings", open=False, elem_id="more-settings") as self.more:
            self._make_controls(more, values)

    def _make_controls(self, names: list[str], values: dict[str, Any]) -> None:
        for name in names:
            setting = self.settings[name]
            self.controls[name] = make_control(setting, values.get(name, setting.default))

    def lay_out_attention(self) -> None:
        layers = self.denoiser.loaded.model.layer_count
        self.attention = gr.Checkbox(label="Attention", info="Bars: what the block attended to in its first forward. "
                                     "Tick before asking; it takes one more forward a block", elem_id="attention")
        self.layer = gr.Slider(0, layers, value=0, step=1, label="Layer", info=f"0: mean of all {layers}",
                               elem_id="layer", visible=False)

    def connect(self) -> None:
        """Say which events call which methods."""
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        controls = list(self.controls.values())
        player = [self.play, self.position, self.clock, self.download, self.saves]
        buttons = [self.ask, self.compare, self.stop]
        canvases = [self.message, self.work, self.legend, self.left, self.right]
        results = [*canvases, *player, self.shown, self.is_idle]

        shown = [self.attention, self.layer]
        asked = [self.ask.click, self.question.submit, self.compare.click]
        gr.on(asked, None, None, [*buttons, self.message], js=BEGIN, **quiet)
        # One event for the three, so that a visitor has one answer at a time.
        answers = gr.on(asked, self.answer, [self.question, *shown, *controls], results, concurrency_id="model",
                        concurrency_limit=MAX_VISITORS, trigger_mode="once", **quiet)
        stopped = self.stop.click(self.end, None, [self.message, *player], cancels=[answers], queue=False, **quiet)
        for ended in (answers, stopped):
            ended.then(None, None, buttons, js=READY, **quiet)

        for chip, text in self.examples.items():
            chip.click(None, None, self.question, js=f"() => {json.dumps(text)}", **quiet)
        self.fold.click(None, None, None, js=FOLD, **quiet)
        self.preset.input(self.use_preset, [self.preset, self.controls["gen_length"]], controls, **quiet)
        for part in PARTS:
            chosen = self.controls[part.selector.name]
            chosen.input(partial(self.use_part, part), [chosen, self.controls["gen_length"]],
                         [self.controls[name] for name in part.settings], **quiet)
        gr.on([control.change for control in controls], self.review, [self.is_idle, self.wrong, *controls],
              [self.retention, self.preset, self.compare, self.left, self.wrong, self.more, *controls],
              trigger_mode="always_last", **quiet)
        self.link.click(self.make_link, [self.question, *controls], [self.query, self.message], **quiet).then(
            None, self.query, None, js=FOLLOW, **quiet)
        self.blocks.load(self.follow_link, None, [self.message, self.question, self.preset, *controls], **quiet)

        seeks = [self.position.change, self.layer.change, self.attention.change]
        gr.on(seeks, self.seek, [self.position, self.shown, *shown], canvases, trigger_mode="always_last", **quiet)
        self.attention.change(lambda on: gr.update(visible=on), self.attention, self.layer, **quiet)
        self.play.click(self.press_play, [self.play, self.position, self.shown], [self.message, *player], **quiet)
        self.clock.tick(self.tick, [self.position, self.shown], [self.message, *player], **quiet)
        self.gif.click(None, None, self.message, js=DRAW, **quiet)
        self.gif.click(self.draw_gif, self.shown, [self.gif_file, self.message], concurrency_limit=1, **quiet).then(
            None, None, None, js=FETCH, **quiet)
        self.opened.upload(self.open_trace, [self.opened, *shown], [*results, self.question, self.preset, *controls],
                           concurrency_limit=1, **quiet)

    # --- Events of the settings ---

    def use_preset(self, preset: Any, gen_length: Any) -> dict[Any, Any]:
        values = self.preset_values(preset, self.length_of(gen_length))
        del values["gen_length"]
        return {self.controls[name]: show_value(self.settings[name], value) for name, value in values.items()}

    def use_part(self, part: Part, chosen: Any, gen_length: Any) -> dict[Any, Any]:
        values = self.part_values(part, chosen, self.length_of(gen_length))
        return {self.controls[name]: show_value(self.settings[name], values[name]) if name in values else gr.skip()
                for name in part.settings}

    def length_of(self, value: Any) -> int:
        """The answer's length to choose parameters for; the default where the control holds none."""
        setting = self.settings["gen_length"]
        try:
            return setting.check(read_value(setting, value))
        except ValueError:
            return setting.default

    def review(self, is_idle: bool, wrong: str, *values: Any) -> dict[Any, Any]:
        """What follows from the controls: the curve, the preset that they are, what they are compared with, the canvas
        before the first question; or what is wrong, beside the control that it is about."""
        try:
            choices = self.read_choices(values)
            settings = self.denoiser.make_settings(choices)
        except ValueError as error:
            curve = render_message(str(error)) + self.hide_unused(dict(zip(self.controls, values)))
            return {self.retention: curve, self.preset: None} | self.mark(wrong, str(error))
        vanilla = self.denoiser.make_settings(self.vanilla_choices(choices))
        shown = {self.retention: self.draw_curve(settings), self.preset: self.preset_of(choices, settings),
                 self.compare: f"Compare with {'DPad' if settings == vanilla else 'vanilla'}"}
        return shown | ({self.left: self.draw_idle(settings)} if is_idle else {}) | self.mark(wrong, "")

    def mark(self, before: str, error: str) -> dict[Any, Any]:
        """Put an error beside the control that it is about, in place of the one before."""
        label = error.partition(" ")[0]
        name = next((name for name, setting in self.settings.items() if setting.label == label), "")
        marks = {self.wrong: name}
        if before and before != name:
            marks[self.controls[before]] = gr.update(info=describe(self.settings[before]), elem_classes=[])
        if name:
            marks[self.controls[name]] = gr.update(info=error, elem_classes=["wrong"])
        if name and name not in self.main:
            marks[self.more] = gr.update(open=True)
        return marks

    def draw_curve(self, settings: DecodingSettings) -> str:
        return render_curve(settings) + self.hide_unused(settings.as_choices())

    def hide_unused(self, choices: dict[str, Any]) -> str:
        """A style that hides the parameters of strategies and rules that are not chosen."""
        try:
            used = self.used(choices)
        except ValueError:  # of a strategy that does not exist
            return ""
        unused = ", ".join(f"#{name}" for name in PART_SETTINGS if name not in used)
        return f"<style>{unused} {{ display: none }}</style>"

    def draw_idle(self, settings: DecodingSettings) -> str:
        return render_idle(self.denoiser.idle_trace(settings), self.denoiser.loaded.title)

    def make_link(self, question: str, *values: Any) -> dict[Any, Any]:
        """The query that reproduces the question and the settings; the browser puts it into its address."""
        try:
            query = self.denoiser.write_link(self.denoiser.make_settings(self.read_choices(values)), question or "")
        except ValueError as error:
            return {self.query: "", self.message: render_message(str(error))}
        note = "The address of this page now holds the question and the settings; it has been copied."
        return {self.query: query, self.message: render_message(note, "note")}

    def follow_link(self, request: gr.Request) -> dict[Any, Any]:
        """Fill the page from its address; what cannot be used there is said, and changes nothing."""
        texts = {label: text for label, text in request.query_params.items() if not label.startswith("__")}
        question = texts.pop("question", None)
        try:
            filled = self.fill(self.denoiser.read_link(texts)) if texts else {}
        except ValueError as error:
            return {self.message: render_message(f"This page's address cannot be used: {error}")}
        return filled | ({} if question is None else {self.question: question}) | {self.message: ""}

    # --- Answers ---

    def answer(
        self, request: gr.Request, event: gr.EventData, question: str, attention: bool, layer: float, *values: Any
    ) -> Iterator[dict[Any, Any]]:
        """Answer a question and show every picture of it; or, with "Compare", answer it with vanilla decoding too."""
        yield from self.decode(question, values, getattr(event.target, "elem_id", "") == "compare",
                               request.session_hash, layer_of(attention, layer))

    def decode(
        self, question: str, values: tuple[Any, ...], with_vanilla: bool, session: str | None = None,
        layer: int | None = None,
    ) -> Iterator[dict[Any, Any]]:
        """Decode once, or twice at the same time; what goes wrong becomes a message.

        session: the visitor's; nothing is decoded, and no pictures are piled up, for one who does not listen. layer:
        whose attention lies over the canvases, see `canvas_after`; None for none, which takes no time.
        """
        threads: list[AnswerThread] = []
        try:
            if not self.has_listener(session):
                return
            for settings in self.choose(values, with_vanilla):
                threads.append(self.denoiser.start(question, settings, layer is not None))
            traces = [thread.trace for thread in threads]
            yield self.begin() | self.draw_canvases(traces, layer=layer)

            while any(thread.is_alive() for thread in threads):
                time.sleep(REFRESH)
                if not self.has_listener(session):
                    return
                yield self.draw_canvases(traces, layer=layer)
            for thread in threads:
                thread.check()
        except ValueError as error:
            yield self.end() | {self.message: render_message(str(error))}
            return
        finally:  # done, or the visitor left or pressed Stop
            for thread in threads:
                thread.cancel()
        yield self.finish(traces, layer)

    def has_listener(self, session: str | None) -> bool:
        """Whether a visitor receives what a job yields; None stands for a caller in this process, who does."""
        return session is None or self.streams.wait(session, PATIENCE)

    def choose(self, values: tuple[Any, ...], with_vanilla: bool) -> list[DecodingSettings]:
        """The settings to decode with: those of the controls. In a comparison vanilla comes first, and where the
        controls say the same, they get DPad."""
        choices = self.read_choices(values)
        settings = self.denoiser.make_settings(choices)
        if not with_vanilla:
            return [settings]

        vanilla = self.denoiser.make_settings(self.vanilla_choices(choices))
        if settings == vanilla:
            choices |= self.preset_values("DPad", settings.gen_length)
            settings = self.denoiser.make_settings(self.applicable(choices))
        return [vanilla, settings]

    def begin(self) -> dict[Any, Any]:
        """An answer begins: there is nothing yet to play or save."""
        return self.pause() | {
            self.message: "", self.shown: "", self.is_idle: False,
            self.play: gr.update(value="Play", interactive=False),
            self.position: gr.update(interactive=False), self.saves: gr.update(visible=False),
        }

    def end(self) -> dict[Any, Any]:
        """An answer has ended, whether it is complete or not."""
        return self.pause() | {self.message: ""}

    # --- Canvases and the player ---

    def draw_canvases(
        self, traces: list[Trace], counts: list[int] | None = None, layer: int | None = None, headline: str = "",
    ) -> dict[Any, Any]:
        """The canvases of one trace or two after so many forwards each; None: after all so far.

        layer: whose attention lies over them, see `canvas_after`. headline: of the chart of a comparison.
        """
        counts = counts or [len(trace.forwards) for trace in traces]
        duration = duration_of(traces)
        names = describe_traces(traces)
        canvases = [render_canvas(trace, count, len(traces) == 2, layer, duration, name)
                    for trace, count, name in zip(traces, counts, names)]
        right = {"visible": True, "value": canvases[1]} if len(canvases) == 2 else {"visible": False}
        headline = headline or " beside ".join(names)
        return {self.left: canvases[0], self.right: gr.update(**right),
                self.legend: render_legend(duration, layer is not None),
                self.work: render_work(traces, counts, duration, headline) if len(traces) == 2 else ""}

    def finish(self, traces: list[Trace], layer: int | None = None) -> dict[Any, Any]:
        """Show complete traces, and let them be played and saved. The slider counts the forwards of the slower one."""
        file = self.denoiser.save(traces[-1])
        total = len(slowest(traces).forwards)
        return self.draw_canvases(traces, layer=layer, headline=headline_of(traces)) | self.end() | {
            self.position: gr.update(minimum=0, maximum=total, value=total, interactive=True),
            self.shown: self.denoiser.shelf.put(traces, len(traces) * file.stat().st_size),
            self.play: gr.update(value="Play", interactive=True),
            self.download: str(file), self.saves: gr.update(visible=True), self.is_idle: False,
        }

    def seek(self, position: float, key: str, attention: bool = False, layer: float = 0) -> dict[Any, Any]:
        """The canvases after so many forwards; of a comparison, when the slower one had done so many."""
        traces = self.denoiser.shelf.get(key)
        if not traces:
            return {self.message: render_message(GONE)} if key else {self.message: gr.skip()}

        leader = slowest(traces)
        forwards = min(max(0, int(position or 0)), len(leader.forwards))
        now = leader.forwards[forwards - 1]["seconds"] if forwards else -1.0
        counts = [forwards if trace is leader else trace.forwards_by(now) for trace in traces]
        return self.draw_canvases(traces, counts, layer_of(attention, layer), headline_of(traces))

    def press_play(self, label: str, position: float, key: str) -> dict[Any, Any]:
        traces = self.denoiser.shelf.get(key)
        if label != "Play" or not traces:
            return self.pause() | ({} if traces else {self.message: render_message(GONE)})
        at_end = position >= len(slowest(traces).forwards)
        rewind = {self.position: 0} if at_end else {}
        return {self.play: "Pause", self.clock: gr.Timer(active=True), **rewind}

    def tick(self, position: float, key: str) -> dict[Any, Any]:
        """Advance the replay by one picture; it stops at the end."""
        traces = self.denoiser.shelf.get(key)
        if not traces:
            return self.pause() | {self.message: render_message(GONE)}
        total = len(slowest(traces).forwards)
        position = min(total, position + max(1, total // REPLAY_FRAMES))
        return {self.position: position} | (self.pause() if position == total else {})

    def pause(self) -> dict[Any, Any]:
        return {self.play: "Play", self.clock: gr.Timer(active=False)}

    def draw_gif(self, key: str) -> dict[Any, Any]:
        """Draw what the player shows as a GIF, which the browser then saves."""
        traces = self.denoiser.shelf.get(key)
        if not traces:
            return {self.message: render_message(GONE)}
        return {self.gif_file: str(self.denoiser.save_gif(traces)), self.message: ""}

    def open_trace(self, file: str, attention: bool = False, layer: float = 0) -> dict[Any, Any]:
        """Show a trace that a visitor has uploaded, with its question and settings; its file is not kept."""
        path = Path(file)
        try:
            trace = read_uploaded(path)
            shown = self.finish([trace], layer_of(attention, layer))
        except (ValueError, OSError) as error:
            return {self.message: render_message(str(error).replace(file, path.name))}
        finally:
            path.unlink(missing_ok=True)

        question = {self.question: trace.head.get("prompt", "")}
        opened = f"{path.name}: a trace of {trace.head.get('model', 'a model without a name')}"
        try:
            filled = self.fill(self.denoiser.read_record(trace.head.get("settings", {})))
        except ValueError as error:  # of another family, or of an answer longer than here
            note = f"{opened}. The controls cannot show its settings: {error}"
            return shown | question | {self.message: render_message(note, "note")}
        return shown | question | filled | {self.message: render_message(opened, "note")}


def layer_of(attention: bool, layer: float) -> int | None:
    """Whose attention the controls ask for, see `canvas_after`."""
    return max(0, int(layer or 0)) if attention else None


def slowest(traces: list[Trace]) -> Trace:
    """The trace that took longest."""
    return max(traces, key=lambda trace: trace.seconds)


def headline_of(traces: Sequence[Trace]) -> str:
    """One sentence on a finished comparison; nothing on a single answer."""
    if len(traces) != 2:
        return ""
    first, second = (canvas_after(trace, len(trace.forwards)) for trace in traces)
    ratio = first.seconds / max(second.seconds, 1e-9)
    speed = f"{ratio:.1f}× faster" if ratio >= 1 else f"{1 / ratio:.1f}× slower"
    one, other = describe_traces(traces)
    same = traces[0].tail.get("answer") == traces[1].tail.get("answer")
    return (f"{other}: {speed} than {one[0].lower()}{one[1:]}, {100 * second.share:.0f}% of the positions in each "
            f"forward, {second.forwards} forwards instead of {first.forwards}; the answers are "
            f"{'the same' if same else 'different'}.")
