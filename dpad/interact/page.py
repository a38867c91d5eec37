"""The page of the web UI: its controls, which follow from the settings' fields, its events, and the replay.

Imported by demo/app.py, which serves it; needs Gradio (demo/requirements.txt).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from dpad.engine.fields import Setting, settings_of
from dpad.engine.methods import METHODS
from dpad.engine.settings import PART_SETTINGS, PARTS, SAMPLER, DecodingSettings, Part, part_defaults
from dpad.interact.canvas import canvas_after, describe_trace
from dpad.interact.denoiser import MAX_GEN_LENGTH, MAX_QUESTION, MAX_VISITORS, AnswerThread, Denoiser, read_uploaded
from dpad.interact.guard import Streams
from dpad.interact.markup import render_canvas, render_curve, render_message
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
EXAMPLES = [
    "Tom has 3 bags with 4 apples in each bag. He finds 5 more apples. How many apples does Tom have now?",
    "Mia bakes 24 rolls. She sells 9 rolls. How many rolls does Mia have now?",
    "Ben saves 12 dollars. Ella saves 3 times as many dollars as Ben. How many dollars does Ella have?",
]


# --- Controls ---------------------------------------------------------------------------------------------------------

OFF = "off"  # of an optional choice; an optional number is off at 0


def make_control(setting: Setting, value: Any) -> Any:
    """The part of the page with which a visitor chooses a setting's value."""
    label = setting.label.replace("_", " ").capitalize()
    if setting.unit and setting.unit not in label:
        label += f" ({setting.unit})"
    common = {"label": label, "info": setting.help[:1].upper() + setting.help[1:], "elem_id": setting.name}
    value = show_value(setting, value)

    if setting.kind is bool:
        return gr.Checkbox(value=value, **common)

    if setting.choices:
        names = [name for name in setting.choices if name != "random" or setting is not SAMPLER.selector]
        return gr.Radio([OFF, *names] if setting.optional else names, value=value, **common)

    minimum, maximum, step = limits(setting)
    if minimum is None or maximum is None:
        return gr.Number(value=value, precision=0 if setting.kind is int else None, step=step, **common)
    return gr.Slider(minimum, maximum, value=value, step=step, **common)


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
    return value


def read_value(setting: Setting, value: Any) -> Any:
    """The value that a control holds as the setting takes it; it is not checked."""
    if setting.optional and value == show_value(setting, None):
        return None
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
        with gr.Blocks(title="DPad: watch suffix dropout", analytics_enabled=False,
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

    def preset_values(self, preset: str, gen_length: float) -> dict[str, Any]:
        """What a preset says of the main settings, the rule and the soft suffix; the parameters of others are left out.
        """
        values = METHODS[PRESETS[preset]].choices(int(gen_length), model=self.denoiser.loaded.checkpoint)
        parameters = part_defaults(values)
        names = {*self.main, *(part.selector.name for part in PARTS), *parameters}
        values = self.family().as_choices() | parameters | values
        return {name: value for name, value in values.items() if name in names}

    def part_values(self, part: Part, name: Any, gen_length: float) -> dict[str, Any]:
        """The parameters that belong to a strategy, a rule or a soft suffix when it is chosen. Settings of the family
        that have the same name are off beside others: a threshold beside a rule without one."""
        own = {setting.name: setting.default for setting in settings_of(self.family)}
        values = part.defaults({part.selector.name: name, "gen_length": int(gen_length)})
        return {name: own[name] for name in part.settings if name in own} | values

    def read_choices(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """What the controls say, without the parameters of other dropout strategies and rules."""
        choices = {name: read_value(self.settings[name], value) for name, value in zip(self.controls, values)}
        parameters = part_defaults(choices)
        own = {setting.name for setting in settings_of(self.family)}
        return {name: value for name, value in choices.items()
                if name not in PART_SETTINGS or name in parameters or name in own}

    def vanilla_choices(self, choices: dict[str, Any]) -> dict[str, Any]:
        """Vanilla decoding to compare with: it keeps the choices that all models share, except what presets change."""
        names = {setting.name for setting in settings_of(DecodingSettings)}
        shared = {name: value for name, value in choices.items() if name in names}
        return shared | self.preset_values("Vanilla", choices["gen_length"])

    # --- Layout ---

    def lay_out(self) -> None:
        """Place the parts, from top to bottom."""
        gr.Markdown(f"# DPad: watch suffix dropout\nThe model is **{self.denoiser.loaded.name}**. It starts from masks "
                    "and decodes them block by block, the tokens that it is surest of first. The *suffix*, the masks "
                    "after the block, is scratch space: DPad computes only a few of them.")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                self.lay_out_question()
            with gr.Column(scale=2, min_width=300):
                self.lay_out_settings()
        self.message = gr.HTML("", elem_id="message")
        with gr.Row():
            self.left = gr.HTML("", elem_id="left", min_height=40)
            self.right = gr.HTML("", elem_id="right", visible=False, min_height=40)
        self.lay_out_attention()
        self.lay_out_player()
        self.opened = gr.File(label="Open a trace (run.py generate --trace writes one)", file_types=[".jsonl"],
                              elem_id="open", height=110)
        self.shown = gr.State("")  # the key of what the player shows: one finished trace, or the two of a comparison

    def lay_out_question(self) -> None:
        self.question = gr.Textbox(label="Question", lines=3, value=EXAMPLES[0], max_length=MAX_QUESTION,
                                   elem_id="question")
        self.example = gr.Dropdown(EXAMPLES, label="Examples", value=None, elem_id="example")
        self.preset = gr.Radio(list(PRESETS), value="DPad", label="Decoding", elem_id="preset")
        with gr.Row():
            self.ask = gr.Button("Ask", variant="primary", elem_id="ask")
            self.compare = gr.Button("Compare with vanilla", elem_id="compare", min_width=230)
            self.stop = gr.Button("Stop", elem_id="stop", min_width=80)

    def lay_out_settings(self) -> None:
        more = [name for name in self.settings if name not in self.main]
        preset = self.preset_values("DPad", self.settings["gen_length"].default)
        self.controls = {}
        for title, names in (("Settings", self.main), ("More settings", more)):
            with gr.Accordion(title, open=False, elem_id=title.lower().replace(" ", "-")):
                for name in names:
                    setting = self.settings[name]
                    self.controls[name] = make_control(setting, preset.get(name, setting.default))
        values = (control.value for control in self.controls.values())
        self.retention = gr.HTML(self.draw_curve(*values), elem_id="retention")

    def lay_out_attention(self) -> None:
        layers = self.denoiser.loaded.model.layer_count
        with gr.Row():
            self.attention = gr.Checkbox(label="Attention", info="Bars: what the block attended to in its first "
                                         "forward. Tick before asking; it takes one more forward a block",
                                         elem_id="attention", min_width=300)
            self.layer = gr.Slider(0, layers, value=0, step=1, label="Layer", info=f"0: mean of all {layers}",
                                   elem_id="layer", visible=False, min_width=200)

    def lay_out_player(self) -> None:
        with gr.Row(visible=False, elem_id="player") as self.player:
            self.play = gr.Button("Play", min_width=90, scale=0, elem_id="play")
            self.position = gr.Slider(0, 1, value=1, step=1, label="Forward", elem_id="position", scale=4)
            self.download = gr.DownloadButton("Save the trace", scale=0, min_width=140, elem_id="download")
        self.clock = gr.Timer(0.1, active=False)

    def connect(self) -> None:
        """Say which events call which methods."""
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        controls = list(self.controls.values())
        player = [self.play, self.position, self.clock]
        results = [self.message, self.left, self.right, self.player, self.download, self.shown, *player]

        busy = quiet | {"concurrency_limit": MAX_VISITORS, "concurrency_id": "model"}
        asked = [self.ask.click, self.question.submit]
        shown = [self.attention, self.layer]
        inputs = [self.question, *shown, *controls]
        answers = [gr.on(asked, self.answer, inputs, results, **busy),
                   self.compare.click(self.answer_twice, inputs, results, **busy)]
        self.stop.click(self.pause, None, player, cancels=answers)

        self.example.input(lambda text: text or gr.skip(), self.example, self.question, **quiet)
        self.preset.input(self.use_preset, [self.preset, self.controls["gen_length"]], controls, **quiet)
        for part in PARTS:
            chosen = self.controls[part.selector.name]
            chosen.input(partial(self.use_part, part), [chosen, self.controls["gen_length"]],
                         [self.controls[name] for name in part.settings], **quiet)
        for control in controls:
            control.change(self.draw_curve, controls, self.retention, **quiet)

        canvases = [self.message, self.left, self.right]
        seeks = [self.position.change, self.layer.change, self.attention.change]
        gr.on(seeks, self.seek, [self.position, self.shown, *shown], canvases, **quiet)
        self.attention.change(lambda on: gr.update(visible=on), self.attention, self.layer, **quiet)
        self.play.click(self.press_play, [self.play, self.position, self.shown], [self.message, *player], **quiet)
        self.clock.tick(self.tick, [self.position, self.shown], [self.message, *player], **quiet)
        self.opened.upload(self.open_trace, [self.opened, *shown], results, concurrency_limit=1, **quiet)

    # --- Events of the panel ---

    def use_preset(self, preset: str, gen_length: float) -> dict[Any, Any]:
        values = self.preset_values(preset, gen_length)
        del values["gen_length"]
        return {self.controls[name]: show_value(self.settings[name], value) for name, value in values.items()}

    def use_part(self, part: Part, chosen: Any, gen_length: float) -> dict[Any, Any]:
        values = self.part_values(part, chosen, gen_length)
        return {self.controls[name]: show_value(self.settings[name], values[name]) if name in values else gr.skip()
                for name in part.settings}

    def draw_curve(self, *values: Any) -> str:
        try:
            return render_curve(self.denoiser.make_settings(self.read_choices(values)))
        except ValueError as error:
            return render_message(str(error))

    def answer(
        self, request: gr.Request, question: str, attention: bool, layer: float, *values: Any
    ) -> Iterator[dict[Any, Any]]:
        """Answer a question, and show every picture of it."""
        yield from self.decode(question, values, False, request.session_hash, layer_of(attention, layer))

    def answer_twice(
        self, request: gr.Request, question: str, attention: bool, layer: float, *values: Any
    ) -> Iterator[dict[Any, Any]]:
        """Answer with vanilla decoding and with the settings, side by side; settings without DPad get it."""
        yield from self.decode(question, values, True, request.session_hash, layer_of(attention, layer))

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
            yield {self.message: "", self.player: gr.update(visible=False), **self.pause(),
                   **self.draw_canvases(traces, layer=layer)}

            while any(thread.is_alive() for thread in threads):
                time.sleep(REFRESH)
                if not self.has_listener(session):
                    return
                yield self.draw_canvases(traces, layer=layer)
            for thread in threads:
                thread.check()
        except ValueError as error:
            yield {self.message: render_message(str(error))}
            return
        finally:  # done, or the visitor left or pressed Stop
            for thread in threads:
                thread.cancel()

        file = self.denoiser.save(traces[-1])
        verdict = render_verdict(*traces) if with_vanilla else ""
        size = len(traces) * file.stat().st_size
        yield self.finish(traces, size, layer) | {self.download: str(file), self.message: verdict}

    def has_listener(self, session: str | None) -> bool:
        """Whether a visitor receives what a job yields; None stands for a caller in this process, who does."""
        return session is None or self.streams.wait(session, PATIENCE)

    def choose(self, values: tuple[Any, ...], with_vanilla: bool) -> list[DecodingSettings]:
        """The settings to decode with: those of the controls; in a comparison vanilla comes first."""
        choices = self.read_choices(values)
        settings = self.denoiser.make_settings(choices)
        if not with_vanilla:
            return [settings]

        vanilla = self.vanilla_choices(choices)
        if choices[SAMPLER.selector.name] == vanilla[SAMPLER.selector.name]:
            dpad = self.preset_values("DPad", settings.gen_length)
            choices |= {name: value for name, value in dpad.items() if value != vanilla.get(name)}
            settings = self.denoiser.make_settings(choices)
        return [self.denoiser.make_settings(vanilla), settings]

    # --- Canvases and the player ---

    def draw_canvases(
        self, traces: list[Trace], counts: list[int] | None = None, layer: int | None = None,
    ) -> dict[Any, Any]:
        """The canvases of one trace or two after so many forwards each; None: after all so far.

        layer: whose attention lies over them, see `canvas_after`.
        """
        if counts is None:
            counts = [len(trace.forwards) for trace in traces]
        canvases = [render_canvas(trace, count, len(traces) == 2, layer) for trace, count in zip(traces, counts)]
        right = {"visible": True, "value": canvases[1]} if len(canvases) == 2 else {"visible": False}
        return {self.left: canvases[0], self.right: gr.update(**right)}

    def finish(self, traces: list[Trace], size: int, layer: int | None = None) -> dict[Any, Any]:
        """Show the player, whose slider counts the forwards of the slower trace. size: of the traces' files, in bytes.
        """
        total = len(slowest(traces).forwards)
        return self.draw_canvases(traces, layer=layer) | self.pause() | {
            self.player: gr.update(visible=True),
            self.position: gr.update(minimum=0, maximum=total, value=total),
            self.shown: self.denoiser.shelf.put(traces, size),
        }

    def seek(self, position: float, key: str, attention: bool = False, layer: float = 0) -> dict[Any, Any]:
        """The canvases after so many forwards; of a comparison, when the slower one had done so many."""
        traces = self.denoiser.shelf.get(key)
        if not traces:
            return {self.message: render_message(GONE)} if key else {self.left: ""}

        leader = slowest(traces)
        forwards = min(max(0, int(position or 0)), len(leader.forwards))
        now = leader.forwards[forwards - 1]["seconds"] if forwards else -1.0
        counts = [forwards if trace is leader else trace.forwards_by(now) for trace in traces]
        return self.draw_canvases(traces, counts, layer_of(attention, layer))

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

    def open_trace(self, file: str, attention: bool = False, layer: float = 0) -> dict[Any, Any]:
        """Show a trace that a visitor has uploaded; its file is not kept."""
        path = Path(file)
        try:
            trace = read_uploaded(path)
            size = path.stat().st_size
            shown = self.finish([trace], size, layer_of(attention, layer))
            return shown | {self.download: str(self.denoiser.save(trace)), self.message: ""}
        except (ValueError, OSError) as error:
            return {self.message: render_message(str(error).replace(file, path.name))}
        finally:
            path.unlink(missing_ok=True)


def layer_of(attention: bool, layer: float) -> int | None:
    """Whose attention the controls ask for, see `canvas_after`."""
    return max(0, int(layer or 0)) if attention else None


def slowest(traces: list[Trace]) -> Trace:
    """The trace that took longest."""
    return max(traces, key=lambda trace: trace.seconds)


def render_verdict(vanilla_trace: Trace, trace: Trace) -> str:
    """One sentence on a finished comparison."""
    vanilla = canvas_after(vanilla_trace, len(vanilla_trace.forwards))
    canvas = canvas_after(trace, len(trace.forwards))
    speedup = vanilla.seconds / max(canvas.seconds, 1e-9)
    same = vanilla_trace.tail.get("answer") == trace.tail.get("answer")
    return render_message(
        f"{describe_trace(trace)}: {speedup:.1f}× faster than vanilla, {100 * canvas.share:.0f}% of the positions in "
        f"each forward, {canvas.forwards} forwards instead of {vanilla.forwards}; the answers are "
        f"{'the same' if same else 'different'}.", kind="verdict")
