"""Text in, text out: encodes prompts, generates, times, cuts at stop strings and counts tokens, for any loaded model.

Shared by the command line's `generate` and by harness.py, so that both measure the same thing. Imported, never run:

    python run.py generate -m tiny --prompt "Tom has 3 bags with 4 apples each. How many apples?"

How speed is counted (the rule behind every number in a record):
    seconds  wall time of the generate call, device synchronised at both ends; encoding, decoding and loading are left
             out. In a batch each row is charged the batch's time over its rows.
    tokens   the answer is cut at its stop string, tokenised again, and every token that is not EOS counts. Tokens
             after the cut were computed but are no answer, so they do not count.
    forwards of the model that the row took part in (NFE).
"""

from __future__ import annotations

import dataclasses
import gc
import inspect
import time
from collections.abc import Sequence

import torch

from dpad.engine import cuda_graphs
from dpad.engine.decoding import DecodingSettings
from dpad.engine.loading import Family
from sampler import FullSuffix, GaussianSampler, SuffixSampler, UniformSampler, WindowSampler

STRATEGIES = ("null", "gaussian", "uniform", "window", "random")  # "random" is an old name of uniform
SAMPLER_NAMES = {FullSuffix: "full", GaussianSampler: "gaussian", UniformSampler: "uniform", WindowSampler: "window"}


@dataclasses.dataclass(frozen=True, slots=True)
class Completion:
    """An answer and what it cost.

    text: after the cut, without special tokens. raw: everything that was generated, special tokens included, but for
    the EOS tokens that fill the end. forwards, tokens, seconds: see the top of this file. tokens_processed: slots that
    the model computed for this row, over all forwards (a batch's total is shared evenly).
    """

    text: str
    raw: str
    forwards: int
    tokens: int
    seconds: float
    tokens_processed: int


# --- Settings ---------------------------------------------------------------------------------------------------------


def make_sampler(strategy: str, window: int | None, k_sigma: float, scale: float, num_tokens: int,
                 gen_length: int) -> SuffixSampler | None:
    """The suffix sampler of a dropout strategy, one of STRATEGIES; None for "null", which keeps the whole suffix.

    window: None stands for 256, or for gen_length where that is shorter. The other arguments are the samplers'.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"dropout_strategy is {strategy!r}; it must be one of {', '.join(STRATEGIES)}")
    if window is None:
        window = max(1, min(256, gen_length))
    if strategy == "gaussian":
        return GaussianSampler(window, k_sigma, scale)
    if strategy in ("uniform", "random"):
        return UniformSampler(window, num_tokens)
    return WindowSampler(window) if strategy == "window" else None


def decoding_options(
    family: Family, *, gen_length: int = 256, block_length: int = 32, steps: int | None = None, threshold: float = 0,
    factor: float | None = None, temperature: float = 0.0, remasking: str | None = None, top_p: float | None = None,
    top_k: int | None = None, alg_temp: float | None = None, use_cache: bool = False, dual_cache: bool = False,
    dropout_strategy: str = "null", window: int | None = None, k_sigma: float = 4.0, scale: float = 2.0,
    num_tokens: int = 0, early_termination: bool = False, suppress_eos: str | None = None, seed: int = 1234,
) -> dict:
    """The keyword arguments of `generate` that stand for the command line's flags, checked before any model is loaded.

    threshold 0 is the fixed schedule, one token a step unless `steps` says otherwise; with a threshold or a factor a
    block takes one step at least and as many as it needs. dual_cache includes use_cache (the prefix cache). Some
    families lack a setting (factor, remasking and suppress_eos are LLaDA's; top_p, top_k and alg_temp Dream's): None
    leaves it out.

    Raises:
        ValueError: naming the argument, its value and what is allowed, or that the family has no such setting.
    """
    parallel = threshold != 0 or factor is not None
    if parallel and steps is not None:
        raise ValueError(f"steps is {steps}, but a threshold or factor decides how many steps there are; leave one out")
    options = {
        "gen_length": gen_length, "block_length": block_length, "steps": steps, "threshold": threshold or None,
        "temperature": temperature, "cache": "dual" if dual_cache else "prefix" if use_cache else "none",
        "suffix_sampler": make_sampler(dropout_strategy, window, k_sigma, scale, num_tokens, gen_length),
        "early_termination": early_termination, "seed": seed,
    }
    particular = {"factor": factor, "remasking": remasking, "suppress_eos": suppress_eos, "top_p": top_p,
                  "top_k": top_k, "alg_temp": alg_temp}
    options |= {name: value for name, value in particular.items() if value is not None}
    shared = {field.name for field in dataclasses.fields(DecodingSettings)}
    settings = DecodingSettings(**{name: options[name] for name in shared & options.keys()}, mask_id=1, eos_id=0)
    rule = family.import_rule()
    foreign = sorted(options.keys() - shared - inspect.signature(rule).parameters.keys())
    if foreign:
        raise ValueError(f"{', '.join(foreign)}: not a setting of {family.package}, whose rule takes "
                         f"{', '.join(list(inspect.signature(rule).parameters)[1:])}")
    rule(settings, **{name: value for name, value in options.items() if name not in shared})
    if parallel:
        options["steps"] = settings.blocks
    return options


def describe_decoding(generate, options: dict) -> dict:
    """The decoding settings of a call in JSON's types, defaults filled in from the signature of `generate`.

    Raises:
        ValueError: `generate` takes no argument of some name in `options`.
    """
    outside = {"mask_id", "eos_id", "attention_mask", "streamer"}
    settings = {
        name: parameter.default for name, parameter in inspect.signature(generate).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in outside
    }
    unknown = sorted(options.keys() - settings.keys())
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not a decoding setting; those are {', '.join(settings)}")
    settings |= options
    if settings["steps"] is None:
        parallel = settings.get("threshold") is not None or settings.get("factor") is not None
        settings["steps"] = settings["gen_length"] // (settings["block_length"] if parallel else 1)
    sampler = settings["suffix_sampler"]
    if sampler is None or isinstance(sampler, FullSuffix):
        settings["suffix_sampler"] = None
    else:
        name = SAMPLER_NAMES.get(type(sampler), type(sampler).__name__)
        settings["suffix_sampler"] = {"name": name} | dataclasses.asdict(sampler)
    return settings


# --- Prompts ----------------------------------------------------------------------------------------------------------


def check_prompt(loaded, prompt: str, gen_length: int) -> None:
    """Raise ValueError when a prompt, chat template included, is empty or too long beside `gen_length` tokens."""
    if not prompt.strip():
        raise ValueError("the prompt is empty; it must have a word at least")
    length, most = len(loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"]), loaded.model.max_positions
    if length + gen_length > most:
        raise ValueError(f"gen_length is {gen_length}, but after a prompt of {length} tokens there is room for "
                         f"{max(0, most - length)}: {loaded.name} holds {most} tokens, prompt and answer together")


def cut_prompt(loaded, prompt: str, limit: int) -> tuple[str, int]:
    """The prompt with its first tokens left out so that `limit` remain at most, and how many that were."""
    ids = loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if len(ids) <= limit:
        return prompt, 0
    return loaded.tokenizer.decode(ids[-limit:], clean_up_tokenization_spaces=False), len(ids) - limit


def check_chat_template(loaded, wanted: bool | None) -> bool:
    """Whether prompts go through the chat template: `wanted`, or the model's default when that is None.

    Raises:
        ValueError: it is wanted and the tokenizer has none.
    """
    if wanted and loaded.tokenizer.chat_template is None:
        raise ValueError(f"chat_template is on, but the tokenizer of {loaded.name} has none")
    return loaded.chat_template if wanted is None else wanted


# --- Answers ----------------------------------------------------------------------------------------------------------


def complete(loaded, prompts: Sequence[str], options: dict, until: Sequence[str] = (),
             streamer=None) -> list[Completion]:
    """Answer a batch of prompts.

    Args:
        loaded: a models.LoadedModel.
        prompts: complete texts of any lengths: `loaded.chat(...)` or `loaded.raw(...)` of what was asked.
        options: keyword arguments of the model's `generate`.
        until: stop strings; the answer ends before the first of them. Special tokens are text here.
        streamer: passed on; it sees the denoising.

    Raises:
        ValueError: on settings or prompts that cannot be used.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    inputs = loaded.encode_text(list(prompts))
    _synchronize(model.device)
    start = time.perf_counter()
    output = loaded.generate(
        model, inputs["input_ids"], attention_mask=inputs["attention_mask"], streamer=streamer, **options
    )
    _synchronize(model.device)
    seconds = (time.perf_counter() - start) / len(prompts)
    share, rest = divmod(output.tokens_processed, len(prompts))
    answers = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    completions = []
    for row, (ids, forwards) in enumerate(zip(answers, output.forwards.tolist(), strict=True)):
        text, raw, tokens = cut(tokenizer, ids, model.config.eos_token_id, until)
        completions.append(Completion(text, raw, forwards, tokens, seconds, share + (row < rest)))
    return completions


def cut(tokenizer, ids: list[int], eos_id: int, until: Sequence[str]) -> tuple[str, str, int]:
    """The answer's text before the first stop string, its raw text, and its tokens that are not EOS."""
    length = len(ids)
    while length and ids[length - 1] == eos_id:
        length -= 1
    raw = tokenizer.decode(ids[:length], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    kept = raw
    for stop in until:
        if stop:
            kept = kept.partition(stop)[0]
    kept_ids = tokenizer(kept, add_special_tokens=False)["input_ids"] if kept else []
    text = tokenizer.decode(kept_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text, raw, sum(token != eos_id for token in kept_ids)


def warm_up(loaded, prompt: str, gen_length: int) -> None:
    """One forward of a whole canvas: a device's first call sets up libraries, which is not generation time."""
    prompt_ids = loaded.encode_text([prompt])["input_ids"]
    canvas = torch.nn.functional.pad(prompt_ids, (0, gen_length), value=loaded.model.config.mask_token_id)
    with torch.inference_mode():
        loaded.model(canvas, logits_to_keep=1)
    _synchronize(loaded.model.device)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device, or the machine, had no memory for what was asked."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in str(error)


def release_memory() -> None:
    """Give back what torch and the caches keep for later, so that smaller pieces fit."""
    cuda_graphs.forget()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
