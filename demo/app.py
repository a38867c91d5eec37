"""A web page on this machine: ask, watch tokens appear out of order, compare vanilla decoding with suffix dropout.

    pip install -r demo/requirements.txt     # Gradio; nothing else in this repository needs it
    python demo/app.py                       # http://127.0.0.1:7860, the embedded model, no network
    python demo/app.py -m instruct           # LLaDA-8B, from the hub

The page talks to this process alone: it loads nothing from elsewhere, sends nothing, and what a visitor types is only
ever text for the model.
"""

from __future__ import annotations

import argparse
import html
import itertools
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from dpad.engine import completion, cuda_graphs, loading
from dpad.engine.decoding import CACHE_MODES
from dpad.interact import canvas as canvases
from dpad.interact import gif
from dpad.interact import trace as traces_

MOST_TOKENS = 512  # the longest answer that the page asks for
MOST_CHARACTERS = 2000  # of a question
VISITORS = 2  # answered at the same time; more wait in a queue
REFRESH = 0.12  # seconds between two pictures while a model decodes
FRAMES = 60  # pictures of a replay
FILES = 64  # finished traces that wait to be saved
FILE_LIMIT = 8 * 2**20  # bytes of a trace that is opened
OFF = {"sampler": "full", "window": 256, "k": 3.0, "scale": 1.6, "number": 64, "threshold": 0.0, "cache": "none",
       "early": False}
PRESETS = {
    "Vanilla": OFF,
    "DPad": OFF | {"sampler": "gaussian", "early": True},
    "Parallel": OFF | {"threshold": 0.9},
    "Parallel + DPad": OFF | {"sampler": "gaussian", "early": True, "threshold": 0.9},
    "All": OFF | {"sampler": "gaussian", "early": True, "threshold": 0.9, "cache": "prefix"},
}
SAMPLERS = {"full": "null", "gaussian": "gaussian", "uniform": "uniform", "window": "window"}
EXAMPLES = [
    "Tom has 3 bags with 4 apples in each bag. He finds 5 more apples. How many apples does Tom have now?",
    "Mia bakes 24 rolls. She sells 9 rolls. How many rolls does Mia have now?",
    "Ben saves 12 dollars. Ella saves 3 times as many dollars as Ben. How many dollars does Ella have?",
]

STYLE = """
.dpad { --early: 253,231,154; --late: 42,120,142; font-family: ui-sans-serif, system-ui, sans-serif; }
.dpad .numbers { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; margin: .2rem 0 .5rem; font-size: .92rem; }
.dpad .numbers b { font-variant-numeric: tabular-nums; font-weight: 650; }
.dpad .cells { display: grid; grid-template-columns: repeat(16, minmax(0, 1fr)); gap: 3px; }
.dpad.half .cells { grid-template-columns: repeat(8, minmax(0, 1fr)); }
@media (max-width: 700px) { .dpad .cells { grid-template-columns: repeat(8, minmax(0, 1fr)); } }
.dpad .cells i { font: 500 .74rem/1.5rem ui-sans-serif, system-ui, sans-serif; height: 1.5rem; text-align: center;
  border-radius: 4px; border: 1px solid transparent; overflow: hidden; white-space: pre; box-sizing: border-box; }
.dpad .cells i.decided { color: #1f2328 !important; } /* the theme colours all text, in either scheme */
.dpad .cells i.decided.late { color: #fff !important; }
.dpad.half h3 { min-height: 2.6em; }
.dpad.half .numbers { min-height: 4.6em; align-content: flex-start; }
.dpad .cells i.block { background: #fff3ea; border: 1.5px solid #d55e00; }
.dpad .cells i.kept { background: #d7e3f4; border-color: #5b86bd; }
.dpad .cells i.dropped { background: transparent; border: 1px dashed #c6cbd1; }
.dpad .cells i.filled { background: #e9ebee; color: #8b949e; }
.dpad .legend { display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .8rem; margin-top: .55rem; opacity: .85; }
.dpad .legend i { display: inline-block; width: 1.1rem; height: .8rem; border-radius: 3px; vertical-align: -1px;
  margin-right: .35rem; border: 1px solid transparent; box-sizing: border-box; }
.dpad .legend .early { background: linear-gradient(90deg, rgb(var(--early)), rgb(var(--late))); }
.dpad .legend .block { background: #fff3ea; border-color: #d55e00; }
.dpad .legend .kept { background: #d7e3f4; border-color: #5b86bd; }
.dpad .legend .dropped { border: 1px dashed #c6cbd1; }
.dpad .answer { white-space: pre-wrap; margin: .7rem 0 0; padding: .6rem .8rem; border-radius: 6px;
  background: #f4f6f8; color: #1f2328; font-size: .95rem; }
.dpad h3 { margin: .1rem 0 .3rem; font-size: 1rem; }
.dpad .said { padding: .55rem .8rem; border-radius: 6px; background: #fdecea; color: #8a1c12; }
.dpad .faster { padding: .5rem .8rem; border-radius: 6px; background: #e6f2ee; color: #0b5c46; font-weight: 600; }
.dpad svg { width: 100%; height: auto; max-width: 34rem; display: block; }
.dark .dpad .cells i.block, .dark .dpad .legend .block { background: #43301f; border-color: #ef8b3f; }
.dark .dpad .cells i.kept, .dark .dpad .legend .kept { background: #25405f; border-color: #6f9bd1; }
.dark .dpad .cells i.dropped, .dark .dpad .legend .dropped { border-color: #4a525b; }
.dark .dpad .cells i.filled { background: #2a3037; color: #7d8590; }
.dark .dpad .answer { background: #20262d; color: #e6edf3; }
.dark .dpad .said { background: #45211e; color: #ffc9c2; }
.dark .dpad .faster { background: #17362d; color: #a6e3cf; }
"""


# --- Pictures ---------------------------------------------------------------------------------------------------------


def canvas(trace: traces_.Trace, forwards: int, half: bool = False) -> str:
    """The answer's places after so many forwards as HTML: all text in it is escaped. half: beside another one."""
    seen, total = canvases.view(trace, forwards), len(trace.forwards)
    eos = trace.head.get("eos", "")
    cells = []
    for place, (kind, text, confidence, number) in enumerate(seen.cells):
        style, label, shown = "", {
            "block": "mask of the current block", "kept": "suffix: kept", "dropped": "suffix: dropped, not computed",
            "filled": "end of the answer, filled in without a forward",
        }.get(kind, ""), ""
        if kind == "decided":
            red, green, blue = gif.shade(number, total)
            style = f' style="background:rgb({red},{green},{blue})"'
            kind = "decided late" if red + green + blue < 430 else "decided"
            label = f"{text!r}: forward {number + 1}, confidence {confidence:.3f}"
            shown = "" if text == eos else text.strip().replace("\n", "⏎") or ("⏎" if "\n" in text else "·")
        cells.append(f'<i class="{kind}"{style} title="{place}: {html.escape(label)}">{html.escape(shown)}</i>')
    state = "done" if seen.done else f"block {seen.block + 1}"
    rate = seen.tokens / seen.seconds if seen.seconds else 0.0
    numbers = "".join(f"<span>{name} <b>{value}</b></span>" for name, value in (
        ("forwards", seen.forwards), ("suffix kept", f"{seen.kept} of {seen.suffix}"),
        ("positions computed", f"{100 * seen.share:.0f}%"), ("tokens/s", f"{rate:.1f}"),
        ("elapsed", f"{seen.seconds:.2f} s"), ("", state)))
    legend = "".join(f'<span><i class="{kind}"></i>{text}</span>' for kind, text in (
        ("early", "decided, early to late"), ("block", "mask of the block"), ("kept", "suffix kept"),
        ("dropped", "suffix dropped")))
    answer = html.escape(trace.tail.get("answer", "") or "(an empty answer)") if seen.done else ""
    return (
        f'<div class="dpad trace {"half" if half else "whole"}" data-forwards="{seen.forwards}" '
        f'data-done="{int(seen.done)}">'
        f"<h3>{html.escape(canvases.words(trace))}</h3>"
        f'<div class="numbers">{numbers}</div><div class="cells" role="img" aria-label="canvas: {seen.tokens} tokens '
        f'decided after {seen.forwards} forwards, {state}">{"".join(cells)}</div>'
        + (f'<div class="answer">{answer}</div>' if seen.done else "") + f'<div class="legend">{legend}</div></div>'
    )


def curve(sampler: str, window: float, k: float, scale: float, number: float, length: int) -> str:
    """The chance that a suffix position is kept against its distance, as SVG, with the sampler's formula."""
    try:
        made = completion.make_sampler(SAMPLERS[sampler], int(window), float(k), float(scale), int(number), int(length))
        if made is not None:
            made.check(int(length))
    except (ValueError, KeyError) as error:
        return said(str(error))
    count = max(1, int(length))
    chances = [1.0] * count if made is None else made.retention(count).tolist()
    points = " ".join(f"{40 + 440 * place / count:.1f},{150 - 120 * chance:.1f}"
                      for place, chance in enumerate(chances))
    formula = {
        "full": "Vanilla: every suffix position is computed.",
        "gaussian": f"DPad: p(i) = min(1, a/√(2π) · exp(−x²/2)), x from 0 to k = {k:g} over the window of {window:g}, "
                    f"a = {scale:g}.",
        "uniform": f"Uniform: {number:g} of the nearest {window:g}.", "window": f"The nearest {window:g}.",
    }[sampler]
    ticks = "".join(f'<text x="{40 + 440 * part:.0f}" y="168" text-anchor="middle">{part * count:.0f}</text>'
                    for part in (0, 0.25, 0.5, 0.75, 1))
    return (
        '<div class="dpad"><svg viewBox="0 0 500 190" role="img" fill="currentColor" font-size="12" '
        f'aria-label="retention curve: {sum(chances):.0f} of {count} positions kept on average">'
        '<path d="M40 150H480M40 30H480" fill="none" stroke="currentColor" opacity=".35" stroke-dasharray="2 3"/>'
        '<text x="34" y="154" text-anchor="end">0</text><text x="34" y="34" text-anchor="end">1</text>'
        f'{ticks}<text x="260" y="186" text-anchor="middle">distance from the block (tokens)</text>'
        f'<polyline points="{points}" fill="none" stroke="#2a8aa3" stroke-width="2.5"/></svg>'
        f"<div class='legend'>{formula} On average {sum(chances):.0f} of {count} are kept.</div></div>"
    )


def said(message: str) -> str:
    """A message to the visitor."""
    return f'<div class="dpad"><div class="said" role="alert">{html.escape(" ".join(message.split()))}</div></div>'


# --- Answers ----------------------------------------------------------------------------------------------------------


class Denoiser:
    """One loaded model that answers visitors' questions; each answer is decoded in a thread of its own."""

    def __init__(self, loaded: loading.LoadedModel):
        self.loaded = loaded
        self.folder = tempfile.TemporaryDirectory(prefix="dpad-")  # of traces to be saved; gone with the process
        self.kept = itertools.count()
        self.seats = threading.BoundedSemaphore(2 * VISITORS)  # a comparison takes two

    def options(self, length: float, settings: dict) -> dict:
        """The keyword arguments of generate; ValueError in the words of the page's labels."""
        if not 32 <= length <= MOST_TOKENS:
            raise ValueError(f"answer length is {length:g}; it must be between 32 and {MOST_TOKENS}")
        for name in ("window", "k", "scale", "number", "threshold"):
            if not isinstance(settings[name], (int, float)) or not math.isfinite(settings[name]):
                raise ValueError(f"{name} is {settings[name]!r}; it must be a number")
        if settings["sampler"] not in SAMPLERS:
            raise ValueError(f"sampler is {settings['sampler']!r}; it must be one of {', '.join(SAMPLERS)}")
        if settings["cache"] not in CACHE_MODES:
            raise ValueError(f"cache is {settings['cache']!r}; it must be one of {', '.join(CACHE_MODES)}")
        return completion.decoding_options(
            loading.FAMILIES[self.loaded.family], gen_length=int(length), block_length=32,
            threshold=settings["threshold"], use_cache=settings["cache"] == "prefix",
            dual_cache=settings["cache"] == "dual", dropout_strategy=SAMPLERS[settings["sampler"]],
            window=int(settings["window"]), k_sigma=settings["k"], scale=settings["scale"],
            num_tokens=int(settings["number"]), early_termination=bool(settings["early"]),
        )

    def start(self, question: str, options: dict) -> Answering:
        """Check a question and begin to answer it; ValueError when it can not be."""
        question = (question or "").strip()
        if not question:
            raise ValueError("the question is empty; type one, or choose an example")
        if len(question) > MOST_CHARACTERS:
            raise ValueError(f"the question has {len(question)} characters; {MOST_CHARACTERS} is the most")
        text = self.loaded.chat(question) if self.loaded.chat_template else self.loaded.raw(question)
        completion.check_prompt(self.loaded, text, options["gen_length"])
        return Answering(self, question, text, options)

    def keep(self, trace: traces_.Trace) -> Path:
        """Write a finished trace, in the place of the one FILES before it, and return where it is."""
        file = Path(self.folder.name) / str(next(self.kept) % FILES) / "trace.jsonl"
        trace.write(file)
        return file


class Answering(threading.Thread):
    """An answer in the making. trace: as far as it is. stop(): end it at the next forward."""

    def __init__(self, denoiser: Denoiser, question: str, text: str, options: dict):
        super().__init__(daemon=True)
        self.denoiser, self.text, self.options_ = denoiser, text, options
        self.tracer = traces_.Tracer(traces_.head_of(denoiser.loaded, question, options), denoiser.loaded,
                                       listener=self._heard)
        self.stopped, self.error = threading.Event(), None
        self.start()

    @property
    def trace(self) -> traces_.Trace:
        return self.tracer.trace

    def _heard(self, trace: traces_.Trace) -> None:
        if self.stopped.is_set():
            raise _Stopped

    def run(self) -> None:
        loaded = self.denoiser.loaded
        try:
            with self.denoiser.seats:
                if self.stopped.is_set():
                    return
                eos = loaded.tokenizer.convert_ids_to_tokens(loaded.model.config.eos_token_id)
                [answer] = completion.complete(loaded, [self.text], self.options_, until=[eos], streamer=self.tracer)
                self.tracer.finish(answer)
        except _Stopped:
            pass
        except Exception as error:
            self.error = error

    def stop(self) -> None:
        self.stopped.set()


    def check(self) -> None:
        """Raise ValueError when the answer failed."""
        if self.error:
            raise ValueError(f"{type(self.error).__name__}: {self.error}")


class _Stopped(Exception):
    """The visitor left, or pressed Stop."""


# --- The page ---------------------------------------------------------------------------------------------------------


class Page:
    """The page of one Denoiser, as gradio.Blocks in `blocks`. Methods return or yield {part: its new value}."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser
        with gradio().Blocks(title="DPad: watch suffix dropout", analytics_enabled=False,
                             delete_cache=(3600, 3600)) as self.blocks:
            self.lay_out()
            self.connect()
        self.blocks.queue(default_concurrency_limit=8, max_size=32)

    def lay_out(self) -> None:
        """Place the parts, from top to bottom."""
        gr = gradio()
        gr.Markdown(f"# DPad: watch suffix dropout\nThe model is **{self.denoiser.loaded.name}**. It starts from masks "
                    "and decodes them block by block, the tokens that it is surest of first. The *suffix*, the masks "
                    "after the block, is scratch space: DPad computes only a few of them.")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                self.question = gr.Textbox(label="Question", lines=3, value=EXAMPLES[0], max_length=MOST_CHARACTERS,
                                           elem_id="question")
                self.example = gr.Dropdown(EXAMPLES, label="Examples", value=None, elem_id="example")
                self.preset = gr.Radio(list(PRESETS), value="DPad", label="Decoding", elem_id="preset")
                with gr.Row():
                    self.ask = gr.Button("Ask", variant="primary", elem_id="ask")
                    self.compare = gr.Button("Compare with vanilla", elem_id="compare", min_width=230)
                    self.stop = gr.Button("Stop", elem_id="stop", min_width=80)
            with gr.Column(scale=2, min_width=300):
                with gr.Accordion("Settings", open=False, elem_id="settings"):
                    self.length = gr.Slider(32, MOST_TOKENS, value=256, step=32, label="Answer length",
                                            elem_id="length")
                    self.knobs = {  # named and ordered as the settings of PRESETS
                        name: part(value=PRESETS["DPad"][name], label=label, elem_id=name, **more)
                        for name, part, label, more in (
                            ("sampler", gr.Radio, "Suffix", {"choices": list(SAMPLERS)}),
                            ("window", gr.Slider, "Window", {"minimum": 1, "maximum": MOST_TOKENS, "step": 1}),
                            ("k", gr.Slider, "k (width in standard deviations)",
                             {"minimum": 0.5, "maximum": 8, "step": 0.1}),
                            ("scale", gr.Slider, "a (scale)", {"minimum": 0.1, "maximum": 8, "step": 0.1}),
                            ("number", gr.Slider, "Kept tokens (uniform)",
                             {"minimum": 0, "maximum": MOST_TOKENS, "step": 1}),
                            ("threshold", gr.Slider, "Threshold (0: one token a forward)",
                             {"minimum": 0, "maximum": 1, "step": 0.05}),
                            ("cache", gr.Radio, "Cache", {"choices": list(CACHE_MODES)}),
                            ("early", gr.Checkbox, "Early termination", {}),
                        )
                    }
                self.retention = gr.HTML(self.draw_curve(256, *PRESETS["DPad"].values()), elem_id="retention")
        self.message = gr.HTML("", elem_id="message")
        with gr.Row():
            self.left = gr.HTML("", elem_id="left", min_height=40)
            self.right = gr.HTML("", elem_id="right", visible=False, min_height=40)
        with gr.Row(visible=False, elem_id="player") as self.player:
            self.play = gr.Button("Play", min_width=90, scale=0, elem_id="play")
            self.scrub = gr.Slider(0, 1, value=1, step=1, label="Forward", elem_id="scrub", scale=4)
            self.save = gr.DownloadButton("Save the trace", scale=0, min_width=140, elem_id="save")
        self.opened = gr.File(label="Open a trace (run.py generate --trace writes one)", file_types=[".jsonl"],
                              elem_id="open", height=110)
        self.clock = gr.Timer(0.1, active=False)
        self.traces = gr.State([])  # what the player shows: one finished trace, or the two of a comparison

    def connect(self) -> None:
        """Say which part's events call which method."""
        gr = gradio()
        knobs, quiet = list(self.knobs.values()), {"show_progress": "hidden"}
        busy = quiet | {"concurrency_limit": VISITORS, "concurrency_id": "model"}
        player = [self.play, self.scrub, self.clock]
        shown = [self.message, self.left, self.right, self.player, self.save, self.traces, *player]
        asked = [gr.on([self.ask.click, self.question.submit], self.answer, [self.question, self.length, *knobs],
                       shown, **busy),
                 self.compare.click(self.answer_twice, [self.question, self.length, *knobs], shown, **busy)]
        self.stop.click(self.pause, None, player, cancels=asked)
        self.example.input(lambda text: text or gr.skip(), self.example, self.question, **quiet)
        self.preset.input(self.use_preset, [self.preset, self.length], knobs, **quiet)
        for slider in (self.length, *(self.knobs[name] for name in ("sampler", "window", "k", "scale", "number"))):
            slider.change(self.draw_curve, [self.length, *knobs], self.retention, **quiet)
        self.scrub.change(self.show, [self.scrub, self.traces], [self.left, self.right], **quiet)
        self.play.click(self.press_play, [self.play, self.scrub, self.traces], player, **quiet)
        self.clock.tick(self.tick, [self.scrub, self.traces], player, **quiet)
        self.opened.upload(self.open_trace, self.opened, shown, **quiet)

    def use_preset(self, name: str, length: float) -> dict:
        chosen = PRESETS[name] | {"window": min(PRESETS[name]["window"], int(length))}
        return {knob: chosen[setting] for setting, knob in self.knobs.items()}

    def draw_curve(self, length: float, *values) -> str:
        settings = dict(zip(self.knobs, values))
        return curve(*(settings[name] for name in ("sampler", "window", "k", "scale", "number")), length)

    def answer(self, question: str, length: float, *values) -> Iterator[dict]:
        """Answer once, showing every picture."""
        yield from self.decode(question, [(length, dict(zip(self.knobs, values)))])

    def answer_twice(self, question: str, length: float, *values) -> Iterator[dict]:
        """Answer with vanilla decoding and with the settings, side by side; settings without DPad get it."""
        settings = dict(zip(self.knobs, values))
        if settings["sampler"] == "full":
            settings |= {name: PRESETS["DPad"][name] for name in ("sampler", "k", "scale", "early")}
            settings["window"] = min(PRESETS["DPad"]["window"], int(length))
        yield from self.decode(question, [(length, OFF), (length, settings)])

    def decode(self, question: str, chosen: list[tuple[float, dict]]) -> Iterator[dict]:
        """Decode with one or two settings at once; what goes wrong becomes a message."""
        answers = []
        try:
            options = [self.denoiser.options(length, settings) for length, settings in chosen]
            for one in options:
                answers.append(self.denoiser.start(question, one))
            traces = [answer.trace for answer in answers]
            yield {self.message: "", self.player: gradio().update(visible=False), **self.pause(),
                   **self.pictures(traces)}
            while any(answer.is_alive() for answer in answers):
                time.sleep(REFRESH)
                yield self.pictures(traces)
            for answer in answers:
                answer.check()
        except ValueError as error:
            yield {self.message: said(str(error))}
            return
        finally:  # done, or the visitor left or pressed Stop
            for answer in answers:
                answer.stop()
        yield self.finished(traces) | {self.message: verdict(traces) if len(traces) == 2 else ""}

    def pictures(self, traces: list[traces_.Trace], counts: list[int] | None = None) -> dict:
        """The canvases of one trace or two, after so many forwards (None: as far as they are)."""
        counts = [len(trace.forwards) for trace in traces] if counts is None else counts
        shown = [canvas(trace, count, half=len(traces) == 2) for trace, count in zip(traces, counts)]
        right = {"visible": True, "value": shown[1]} if len(shown) == 2 else {"visible": False}
        return {self.left: shown[0], self.right: gradio().update(**right)}

    def finished(self, traces: list[traces_.Trace]) -> dict:
        """The player: its slider runs over the forwards of the slower trace; the last trace can be saved."""
        gr, most = gradio(), len(slower(traces).forwards)
        return self.pictures(traces) | self.pause() | {
            self.player: gr.update(visible=True), self.scrub: gr.update(minimum=0, maximum=most, value=most),
            self.save: str(self.denoiser.keep(traces[-1])), self.traces: traces,
        }

    def show(self, forward: float, traces: list[traces_.Trace]) -> dict:
        """The pictures after so many forwards; of a comparison, at the moment when the slower one had so many."""
        if not traces:
            return {self.left: ""}
        leader = slower(traces)
        now = leader.forwards[int(forward) - 1]["seconds"] if forward else -1.0
        return self.pictures(traces, [
            int(forward) if trace is leader else sum(entry["seconds"] <= now for entry in trace.forwards)
            for trace in traces
        ])

    def press_play(self, label: str, forward: float, traces: list[traces_.Trace]) -> dict:
        if label != "Play":
            return self.pause()
        again = {self.scrub: 0} if forward >= len(slower(traces).forwards) else {}
        return {self.play: "Pause", self.clock: gradio().Timer(active=True), **again}

    def tick(self, forward: float, traces: list[traces_.Trace]) -> dict:
        """Go on by one picture of the replay; at the end it stops."""
        most = len(slower(traces).forwards) if traces else 0
        place = min(most, forward + max(1, most // FRAMES))
        return {self.scrub: place} | (self.pause() if place == most else {})

    def pause(self) -> dict:
        return {self.play: "Play", self.clock: gradio().Timer(active=False)}

    def open_trace(self, file: str) -> dict:
        try:
            if os.path.getsize(file) > FILE_LIMIT:
                raise ValueError(f"the file is larger than {FILE_LIMIT // 2**20} MB")
            trace = traces_.read(file)
            if trace.head["gen_length"] > 8 * MOST_TOKENS:
                raise ValueError(f"the trace has {trace.head['gen_length']} places; {8 * MOST_TOKENS} is the most")
            if not trace.forwards:
                raise ValueError(f"{file} holds no forward")
        except (ValueError, OSError) as error:
            return {self.message: said(str(error).replace(str(file), Path(file).name))}
        return self.finished([trace]) | {self.message: ""}


def gradio():
    """The library, imported when the page is made: `--help` and its own absence are told without it."""
    import gradio

    return gradio


def slower(traces: list[traces_.Trace]) -> traces_.Trace:
    """The trace that took longer."""
    return max(traces, key=lambda trace: trace.forwards[-1]["seconds"])


def verdict(traces: list[traces_.Trace]) -> str:
    """One sentence on a finished comparison."""
    vanilla, other = (canvases.view(trace, len(trace.forwards)) for trace in traces)
    same = traces[0].tail.get("answer") == traces[1].tail.get("answer")
    return (f'<div class="dpad"><div class="faster" role="status">{html.escape(canvases.words(traces[1]))}: '
            f"{vanilla.seconds / max(other.seconds, 1e-9):.1f}× faster than vanilla, {100 * other.share:.0f}% of the "
            f"positions in each forward, {other.forwards} forwards instead of {vanilla.forwards}; the answers are "
            f"{'the same' if same else 'different'}.</div></div>")


def local_theme():
    """Gradio's base theme with this machine's own fonts: its default fetches some from the web."""
    import gradio as gr

    return gr.themes.Base(primary_hue="cyan", font=["ui-sans-serif", "system-ui", "sans-serif"],
                          font_mono=["ui-monospace", "monospace"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="app.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("-m", "--model", default="tiny", help="tiny, dream-tiny, instruct, 1.5, ..., a folder or a hub "
                        "id (default: tiny)")
    parser.add_argument("--port", type=int, default=7860, help="on 127.0.0.1 (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the first GPU, or the CPU)")
    parser.add_argument("--dtype", help="float32, bfloat16, float16")
    options = parser.parse_args(arguments)
    for name, value in {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}.items():
        os.environ[name] = value
    try:
        import gradio  # noqa: F401
    except ImportError:
        print("app.py: the page needs Gradio: pip install -r demo/requirements.txt", file=sys.stderr)
        return 1
    try:
        denoiser = Denoiser(loading.load(options.model, device=options.device, dtype=options.dtype))
        with cuda_graphs.use("off"):  # recorded graphs share their buffers, and visitors do not
            print(f"http://127.0.0.1:{options.port}  (Ctrl-C ends it)", flush=True)
            Page(denoiser).blocks.launch(
                server_name="127.0.0.1", server_port=options.port, share=False, quiet=True, theme=local_theme(),
                css=STYLE, footer_links=[], ssr_mode=False, enable_monitoring=False, max_file_size=FILE_LIMIT,
            )
    except (ValueError, OSError) as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
