"""What blocks attend to, averaged over answers: measures what `run.py attention` shows, and makes its record.

    python run.py attention -m tiny -t arithmetic-50 --limit 20 -d gaussian -k 3 -sc 1.6 --plot attention.png

Every answer is decoded as its settings say, up to the forward that is looked at. There the attention of the block's
positions is taken twice: as if the block saw the whole suffix, and with the suffix that the sampler keeps. Answers are
averaged with their blocks laid over each other. dpad/results/attentions.py shows the record. Imported by run.py.

Shapes: H heads, S slots that a block sees, W places of the average.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dpad.engine.adapters import describe_adapter
from dpad.engine.attention import MeanAttention, Moment, Moments, check_plain, heads_at
from dpad.engine.checks import check_integer, short, suggest
from dpad.engine.command_line import waiting_for
from dpad.engine.loading import LoadedModel
from dpad.engine.prompts import check_chat_template, check_prompt
from dpad.engine.selection import deciding_device
from dpad.engine.settings import SAMPLER, DecodingSettings
from dpad.results import attentions, charts, files
from dpad.results.attentions import WHOLE
from dpad.results.formatting import LAYOUT, as_columns, printable
from dpad.results.records import environment
from sampler import FullSuffix, ScoredSampler

BEFORE = 200  # places before the block, as in the paper's figure 3
ALL = "all"
PATIENCE = 2  # seconds without a progress bar
DIGITS = 5  # of the weights in a record

# --- What is asked for ------------------------------------------------------------------------------------------------


def check_place(settings: DecodingSettings, block: str, step: int, before: int) -> int | None:
    """The block to look at, None for all that have a suffix.

    Raises:
        ValueError: there is no such block, it has no suffix, or decoding does not attend there as it would be shown.
    """
    check_integer("step", step, 0, settings.block_length - 1)
    check_integer("before", before, 0)
    check_plain(settings)
    if isinstance(settings.suffix_sampler, ScoredSampler) and step and settings.cache != "none":
        raise ValueError(f"step is {step}, but cache {settings.cache} beside dropout_strategy "
                         f"{SAMPLER.name_of(settings.suffix_sampler)} is shown at step 0 alone; leave the cache out")
    last = settings.blocks - 1
    if not last:
        raise ValueError(f"block_length is {settings.block_length}; it must be less than gen_length "
                         f"({settings.gen_length}): the last block has no suffix to attend to")
    if block == ALL:
        return None
    number = int(block) if block.isascii() and block.isdecimal() and len(block) < 10 else -1
    if number == last:
        raise ValueError(f"block is {number}, the last one, which has no suffix to attend to; it must be from 0 to "
                         f"{last - 1}, or all")
    if not 0 <= number < last:
        raise ValueError(f"block is {short(block)}; it must be a number from 0 to {last - 1}, or all"
                         f"{suggest(block, [ALL])}")
    return number


def load_task(name: str, num_fewshot: int, limit: int | None, seed: int) -> dict[str, Any]:
    """A task, in the form of TaskManager.load.

    Raises:
        ValueError: there is no such task, it asks for no answers, or it has too few worked examples.
    """
    with waiting_for("lm-eval"):
        from dpad.evaluation import runs
        from dpad.evaluation.adapter import GENERATE
        from dpad.evaluation.tasks import load_tasks, output_types

    runs.check_run(num_fewshot, limit)
    with waiting_for(f"the task {name}"):
        tasks = load_tasks(name, num_fewshot, seed)
    if output_types(tasks) != {GENERATE}:
        raise ValueError(f"task {name!r} asks for log-likelihoods, for which nothing is decoded")
    return tasks


def prompts_of_task(
    loaded: LoadedModel, tasks: dict[str, Any], settings: DecodingSettings, limit: int | None,
    chat_template: bool | None,
) -> list[str]:
    """The complete prompts of a task's first documents, as an evaluation has them.

    Raises:
        ValueError: a prompt leaves no room for an answer, or there is no chat template.
    """
    from dpad.evaluation import runs
    from dpad.evaluation.adapter import GENERATE, DiffusionLM
    from dpad.evaluation.tasks import quiet

    use_template = check_chat_template(loaded, chat_template)
    lm = DiffusionLM(loaded, settings)
    with quiet():
        requests = runs.build_requests(lm, tasks, limit, use_template)
    return [request.prompt for request in lm.prepare(GENERATE, requests[GENERATE]) if request.repeat == 0]


# --- Measuring --------------------------------------------------------------------------------------------------------


def measure(
    loaded: LoadedModel, prompts: Sequence[str], settings: DecodingSettings, block: int | None = 0, step: int = 0,
    before: int = BEFORE, about: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The record of what blocks attend to, averaged over the answers to these prompts.

    Args:
        prompts: complete texts: `loaded.chat(...)` or `loaded.raw(...)` of what was asked.
        settings: how to decode.
        block: which block is looked at, counted from 0; None for the average over all that have a suffix.
        step: which of the block's forwards, counted from 0.
        before: how many places before the block the record has.
        about: goes into the record as it is, such as `task` and `command`.

    Raises:
        ValueError: a prompt cannot be answered, or no answer came as far as the block and the step.
    """
    for prompt in prompts:
        check_prompt(loaded, prompt, settings.gen_length)
    views = [_View(WHOLE)]
    if not isinstance(settings.suffix_sampler, FullSuffix):
        views.append(_View(SAMPLER.name_of(settings.suffix_sampler)))

    last_block = settings.blocks - 2 if block is None else block
    most_steps = 0
    with tqdm(total=len(prompts) * (last_block + 1), unit="block", delay=PATIENCE, leave=False, disable=None) as bar:
        for number, prompt in enumerate(prompts, start=1):
            moments, steps = find_moments(loaded, prompt, settings, block, step, bar.update)
            most_steps = max(most_steps, steps)
            for moment in moments:
                for view, columns in zip(views, _columns_of(loaded, moment, settings)):
                    view.add(heads_at(loaded.model, moment, columns, settings.cache), moment, columns, before)
            bar.update(number * (last_block + 1) - bar.n)  # of an answer that ended early
    if not views[0].samples:
        if most_steps:
            raise ValueError(f"step is {step}; it must be at most {most_steps - 1}: the block took {most_steps} "
                             f"forward{'s' * (most_steps != 1)}, which count from 0")
        raise ValueError(f"block is {block}, but with early termination no answer came that far")

    return {
        "kind": "attention",
        "model": loaded.name,
        **about,
        "problems": len(prompts),
        "samples": views[0].samples,
        "block": block,
        "step": step,
        "settings": settings.to_json() | loaded.describe_weights(),
        "views": [view.to_json() for view in views],
        "environment": environment(),
    } | describe_adapter(loaded.adapter)


class _Reached(Exception):
    """Decoding has come as far as is looked at."""


def find_moments(
    loaded: LoadedModel, prompt: str, settings: DecodingSettings, block: int | None, step: int,
    on_block: Callable[[], Any] | None = None,
) -> tuple[list[Moment], int]:
    """Decode an answer up to the last moment that is asked for: the moments, and the most forwards that a block took.

    block: None for all that have a suffix. on_block: called when a block begins.
    """
    last_block = settings.blocks - 2 if block is None else block
    found: list[Moment] = []
    most_steps = 0

    def look(moment: Moment) -> None:
        nonlocal most_steps
        if moment.block > last_block:
            raise _Reached
        if moment.step == 0 and on_block is not None:
            on_block()
        if block in (None, moment.block):
            most_steps = max(most_steps, moment.step + 1)
            if moment.step == step:
                found.append(moment)
        if (moment.block, moment.step) == (last_block, step):
            raise _Reached

    streamer = Moments(loaded.model.config.mask_token_id, settings.gen_length, settings.block_length, look)
    try:
        loaded.generate(loaded.encode_text([prompt])["input_ids"], settings, streamer=streamer)
    except _Reached:
        pass
    return found, most_steps


@torch.no_grad()
def _columns_of(loaded: LoadedModel, moment: Moment, settings: DecodingSettings) -> list[Tensor]:
    """What the block sees, int64 [S]: first with the whole suffix, then with what the sampler keeps."""
    whole = torch.arange(len(moment.tokens))
    sampler = settings.suffix_sampler
    if not isinstance(sampler, ScoredSampler):
        return [whole, moment.columns]
    watch = MeanAttention(slice(moment.begin, moment.end))
    device = loaded.model.device
    loaded.model.hidden_states(moment.opened[None].to(device), whole[None].to(device), watch=watch)
    kept = sampler.select(watch.scores()[:, moment.end :])[0].cpu()
    return [whole, torch.cat((whole[: moment.end], whole[moment.end :][kept]))]


class _View:
    """The sum of what blocks pay to each place, and what is counted beside it. suffix: what the blocks see of it."""

    def __init__(self, suffix: str):
        self.suffix = suffix
        self.samples = 0
        self.kept = 0
        self.total = torch.zeros(0)  # [layers, H, W], its first place is `before` places before the block
        self.counts = torch.zeros(0, dtype=torch.long)  # of samples that have a place, [W]
        self.shares = torch.zeros(0)  # [layers, 3]: before the block, in it, behind it
        self.ends: list[Tensor] = []  # of samples that keep the last position: [layers, 2], there and in the median
        self.before = 0

    def add(self, weights: Tensor, moment: Moment, columns: Tensor, before: int) -> None:
        """Add a sample: weights float32 [layers, H, S] to the columns [S]."""
        weights = weights.to(deciding_device(weights.device)).double()
        columns = columns.to(weights.device)
        width = before + len(moment.tokens) - moment.begin
        missing = max(0, width - len(self.counts))  # another block may have a longer suffix
        if not self.samples:
            self.before = before
            self.total = weights.new_zeros(*weights.shape[:2], 0)
            self.shares = weights.new_zeros(len(weights), 3)
        self.total = torch.nn.functional.pad(self.total, (0, missing))
        self.counts = torch.nn.functional.pad(self.counts, (0, missing))

        places = columns - moment.begin + before
        near = places >= 0
        self.total[:, :, places[near]] += weights[:, :, near]
        self.counts[places[near]] += 1
        self.samples += 1
        self.kept += int((columns >= moment.end).sum())

        mean = weights.mean(dim=1)  # [layers, S]
        begin, end = moment.begin, moment.end  # what stands before the suffix is seen whole: columns are slots
        parts = (mean[:, :begin], mean[:, begin:end], mean[:, end:])
        self.shares += torch.stack([part.sum(dim=1) for part in parts], dim=1)
        suffix = parts[2]
        if suffix.shape[1] > 1 and columns[-1] == len(moment.tokens) - 1:
            self.ends.append(torch.stack((suffix[:, -1], suffix[:, :-1].quantile(0.5, dim=1)), dim=1))

    def to_json(self) -> dict[str, Any]:
        """Means over the samples: for every layer the mean and the range over heads, place by place."""
        first = int(self.counts.nonzero()[0])  # no prompt may be as long as what is shown before the block
        heads = (self.total / self.counts)[:, :, first:]
        shares = self.shares / self.samples
        ends = torch.stack(self.ends).mean(dim=0).tolist() if self.ends else [(None, None)] * len(shares)
        return {
            "suffix": self.suffix,
            "kept_suffix": self.kept / self.samples,
            "heads": heads.shape[1],
            "first": first - self.before,
            "counts": self.counts[first:].tolist(),
            "layers": [
                {
                    "before": _rounded(before), "block": _rounded(block), "behind": _rounded(behind),
                    "last": _rounded(last), "median": _rounded(median),
                    "mean": _series(layer.mean(dim=0)), "low": _series(layer.amin(dim=0)),
                    "high": _series(layer.amax(dim=0)),
                }
                for layer, (before, block, behind), (last, median) in zip(heads, shares.tolist(), ends)
            ],
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _series(values: Tensor) -> list[float | None]:
    """Numbers for a record, [W]; None at places that no sample has."""
    return [None if value != value else _rounded(value) for value in values.tolist()]


def show(record: dict[str, Any], record_file: str | None = None, plot: str | None = None) -> None:
    """Print a record, and write and draw it where these files are named."""
    if record_file is not None:
        files.write_json(record_file, record, indent=None)  # thousands of numbers, which nobody reads line by line
    text = f"{as_columns(*attentions.short_table(record))}\n\n{attentions.summarize(record)}"
    print(f"{printable(text, LAYOUT)}\n\n{printable(attentions.attention_caption([record]))}")
    if record_file is not None:
        print(f"written to {record_file}")
    if plot is not None:
        charts.draw([record], plot)
        print(f"drawn in {plot}")
