"""`model.generate`, as transformers' users know it: its keywords, its GenerationConfig, its streamers, beside our own.

    import dpad
    model = AutoModelForCausalLM.from_pretrained("checkpoints/llada-tiny")
    tokens = model.generate(**inputs, max_new_tokens=256, threshold=0.9, dropout_strategy="gaussian")     # [R, P + 256]

What is decided is what `decoding.decode` decides for the same settings. This file turns keywords into settings: those
of transformers that mean something to a masked diffusion model are translated, the others are refused by name.
docs/transformers.md lists them. Imported, never run.

Shapes: R rows, P prompt columns, G answer columns.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig

from dpad.engine import checkpoint
from dpad.engine.checks import check_integer, one_line, short, suggest, texts_of
from dpad.engine.decoding import DecodingOutput, decode
from dpad.engine.fields import settings_of
from dpad.engine.pretrained import PretrainedDiffusionModel
from dpad.engine.settings import BLOCK_LENGTH, PARTS, SAMPLER, DecodingSettings, TokenIds
from dpad.engine.unmasking import UnmaskingRule

FILE = "generation_config.json"
# Several names for one thing: what says it at the higher level replaces the others.
SYNONYMS = (("gen_length", "max_new_tokens", "max_length"), ("cache", "use_cache"))
TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id", "mask_token_id")
TRANSLATED = {name for names in SYNONYMS for name in names} | {
    *TOKENS, "do_sample", "stop_strings", "tokenizer", "return_dict_in_generate", "token_type_ids",
}
# Values of other keywords of transformers, and of Dream's code, that ask for nothing; so do None, False and empty ones.
NEUTRAL: dict[str, Any] = {
    "min_length": 0, "min_new_tokens": 0, "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1,
    "repetition_penalty": 1, "encoder_repetition_penalty": 1, "length_penalty": 1, "diversity_penalty": 0,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0,
    "min_p": 0, "top_p": 1, "top_k": 0, "guidance_scale": 1, "disable_compile": True, "eps": 1e-3,
}
# What has no meaning here, beside the fields of a GenerationConfig.
ARGUMENTS = {
    "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "synced_gpus", "assistant_model",
    "assistant_tokenizer", "negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate", "inputs_embeds",
    "past_key_values", "position_ids", "cache_position", "output_history", "trust_remote_code",
}
LEFT_TO_RIGHT = ("it is made for models that choose one next token after the other, and here many places of a block "
                 "are decoded at once")
REASONS = {
    "top_p": "LLaDA draws from all tokens, and Dream alone from the likeliest ones",
    "top_k": "LLaDA draws from all tokens, and Dream alone from the likeliest ones",
    "num_return_sequences": "noise depends on the seed alone, so that all would be the same (call again with another "
                            "seed)",
    "inputs_embeds": "decoding reads and writes token ids",
    "position_ids": "positions follow from attention_mask",
    "past_key_values": "keys and values change with every block (cache='prefix' and cache='dual' keep those that are "
                       "reused)",
    "cache_implementation": "the caches here are cache='prefix' and cache='dual'",
}
# Where something was said, for messages. A later one takes the place of an earlier one.
LEVELS = (" in model.generation_config", " in generation_config", "")


# --- The model --------------------------------------------------------------------------------------------------------


class AnsweringModel(PretrainedDiffusionModel):
    """A PretrainedDiffusionModel with `generate`. A family's subclass names its settings and its unmasking rule."""

    settings_class: ClassVar[type[DecodingSettings]]
    rule_class: ClassVar[type[UnmaskingRule]]
    output_modalities = ("text",)  # for the pipelines of transformers

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.generation_config = plain_defaults(config)

    @classmethod
    def can_generate(cls) -> bool:
        """Yes: transformers then keeps a `generation_config`, and its pipelines and peft call `generate`."""
        return True

    def generate(
        self, inputs: Tensor | None = None, generation_config: GenerationConfig | None = None, *,
        input_ids: Tensor | None = None, attention_mask: Tensor | None = None, streamer: Any = None,
        on_forward: Callable[[int, bool], None] | None = None, **keywords: Any,
    ) -> Tensor | DecodingOutput:
        """Answer every prompt, block by block.

        Args:
            inputs, input_ids: int64 [R, P], the prompts under either name; unequal ones are padded on the left. Without
                any the answer follows BOS.
            generation_config: settings that take the place of those in `self.generation_config`; keywords take the
                place of both.
            attention_mask: [R, P], 0 at the padding, 1 elsewhere.
            streamer: gets the prompt, then each finished block, then `end()`, as transformers' streamers want it.
            on_forward: see `decoding.decode`.
            keywords: the decoding settings (`settings_class`; a suffix sampler as `suffix_sampler` or by
                `dropout_strategy` and its parameters), and of transformers' keywords max_new_tokens, max_length,
                do_sample, use_cache, eos_token_id, pad_token_id, bos_token_id, stop_strings with tokenizer,
                return_dict_in_generate. docs/transformers.md says what each does.

        Returns:
            int64 [R, P + G]; with return_dict_in_generate the DecodingOutput that has it.

        Raises:
            ValueError: naming the argument, its value and what is allowed; also for what has no meaning here.
        """
        prompt_tuning = vars(self).get("prepare_inputs_for_generation")
        if getattr(prompt_tuning, "__func__", None) not in (None, type(self).prepare_inputs_for_generation):
            raise ValueError("the peft adapter adds virtual tokens to a prompt, which decoding here cannot see; use an "
                             "adapter of the weights (LoRA)")
        choices = Choices(self, generation_config, keywords)
        if inputs is not None and input_ids is not None:
            raise ValueError("inputs and input_ids are both given; give one of the two")
        prompts = choices.prompts(input_ids if inputs is None else inputs)
        columns = prompts.shape[1] if isinstance(prompts, Tensor) and prompts.ndim == 2 else 0
        longest = columns
        if isinstance(attention_mask, Tensor) and attention_mask.numel():
            longest = int(attention_mask.sum(-1).max())
        request = choices.request(columns, longest)
        if streamer is not None and request.changes:
            streamer = _FinishedBlocks(streamer, request)

        output = decode(self, self.rule_class(request.settings, request.tokens), prompts, attention_mask, streamer,
                        on_forward)
        if request.changes:
            prompt = prompts.shape[1]
            answers, _ = request.finish(output.sequences[:, prompt:])
            output.sequences = torch.cat((output.sequences[:, :prompt], answers), dim=1)
            output.decided_at = output.decided_at[:, : request.length]
        return output if request.returns_dict else output.sequences

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name: str | Path, *args: Any, generation_config: GenerationConfig | None = None, **options: Any
    ) -> Any:
        """As the base's, with the settings of generation_config.json, or those given, for `generate`."""
        loaded = super().from_pretrained(name, *args, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.generation_config = generation_config or read_defaults(Path(model.name_or_path), model.config)
        return loaded

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, *args: Any, **options: Any
    ) -> None:
        """As transformers', in safetensors. Samplers and rules among `generation_config`'s settings go by name.

        Raises:
            ValueError: files of another kind are asked for, which would not be loaded.
        """
        for name, allowed in (("variant", None), ("safe_serialization", True)):
            if options.get(name, allowed) is not allowed:
                raise ValueError(f"{name} is {short(options[name])}; it must be {allowed}, since weights are loaded "
                                 f"from {checkpoint.WEIGHTS} or {checkpoint.INDEX} alone")
        for part in PARTS:
            value = getattr(self.generation_config, part.field, None)
            if value is not None and part.is_object(value):
                delattr(self.generation_config, part.field)
                for name, choice in part.as_choices(value).items():
                    setattr(self.generation_config, name, choice)
        super().save_pretrained(save_directory, *args, **options)


def plain_defaults(config: PretrainedConfig) -> GenerationConfig:
    """What holds for a model whose checkpoint says nothing: the likeliest tokens, and its own special ones."""
    bos = getattr(config, "bos_token_id", None)
    return GenerationConfig(do_sample=False, bos_token_id=bos, eos_token_id=config.eos_token_id)


def read_defaults(folder: Path, config: PretrainedConfig) -> GenerationConfig:
    """The settings in a checkpoint's generation_config.json; `plain_defaults` where it has none of its own.

    Raises:
        ValueError: the file cannot be read or used.
    """
    if not (folder / FILE).is_file():
        return plain_defaults(config)
    fields = checkpoint.read_object(folder / FILE)
    if fields.get("_from_model_config"):  # a copy of config.json's fields
        return plain_defaults(config)
    for field in fields:
        if field.startswith("__") or callable(getattr(GenerationConfig, field, None)):
            raise ValueError(f"checkpoint {str(folder)!r}: field {short(field)} of {FILE} is the name of a method")
    try:
        return GenerationConfig.from_dict(fields)
    except Exception as error:  # transformers does not check the types of all fields
        reason = one_line(f"{type(error).__name__}: {error}")
        raise ValueError(f"checkpoint {str(folder)!r} has a {FILE} that cannot be used ({reason})") from error


# --- Keywords into settings -------------------------------------------------------------------------------------------


class Choices:
    """What was said about a call, by name. Settings, special tokens and the rest of transformers' names are mixed yet.

    Args:
        config: a GenerationConfig that was given beside the model's own. keywords: take the place of both.

    Raises:
        ValueError: on a name that is unknown, or says what has no meaning here.
    """

    def __init__(self, model: AnsweringModel, config: GenerationConfig | None, keywords: Mapping[str, Any]):
        if config is not None and not isinstance(config, GenerationConfig):
            raise ValueError(f"generation_config is a {type(config).__name__}; it must be a GenerationConfig")
        self.model = model
        self.own = {entry.name for entry in settings_of(model.settings_class)}
        self.values: dict[str, Any] = {}
        self.level: dict[str, int] = {}  # of LEVELS, by name
        for level, said in enumerate((_fields(model.generation_config), _fields(config), keywords)):
            self._add(said, level)

        attends = self.values.get(SAMPLER.selector.name) == "attention"  # whose parameter is called top_k too
        names = {entry.name for entry in model.settings_class.choices()} | {part.field for part in PARTS}
        names -= set() if "top_k" in self.own or attends else {"top_k"}
        for name, value in list(self.values.items()):
            if name in NEUTRAL and (value is None or _same(value, NEUTRAL[name])) and not (attends and name == "top_k"):
                self._drop(name)
            elif name not in names and not self._is_meant(name, value, names):
                self._drop(name)

    def _add(self, said: Mapping[str, Any], level: int) -> None:
        """Put what a level says over what the levels below it say."""
        for part in PARTS:
            if part.field in said or part.selector.name in said:
                for name in {part.field, part.selector.name, *part.settings} - self.own:
                    self._drop(name)
        for names in SYNONYMS:
            given = [name for name in names if said.get(name) is not None]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} are both given{LEVELS[level]}; give one of them")
            for name in names if given else ():
                self._drop(name)
        if said.get("do_sample") is False or said.get("temperature") is not None:
            self._drop("temperature")
            self._drop("do_sample")
        self.values |= said
        self.level |= dict.fromkeys(said, level)

    def _drop(self, name: str) -> None:
        self.values.pop(name, None)
        self.level.pop(name, None)

    def _is_meant(self, name: str, value: Any, names: set[str]) -> bool:
        """Whether a name that is no setting says something; ValueError if that cannot be followed."""
        said = f"{name} is {short(value)}{LEVELS[self.level[name]]}"
        if name not in TRANSLATED | ARGUMENTS | NEUTRAL.keys() and not hasattr(_PLAIN, name):
            raise ValueError(f"{said}, but generate has no such argument{suggest(name, sorted(names | TRANSLATED))}")
        if name in TRANSLATED and value is not None:
            return True
        if value is None or value is False or (hasattr(value, "__len__") and not len(value)):
            return False
        raise ValueError(f"{said}, which is not possible: {REASONS.get(name, LEFT_TO_RIGHT)}; leave it out")

    def prompts(self, input_ids: Tensor | None) -> Tensor:
        """The prompts; where there are none, BOS alone."""
        if input_ids is not None:
            return input_ids
        bos = _ids("bos_token_id", self.values.get("bos_token_id"), self.model)
        if not bos:
            raise ValueError("input_ids is missing, and there is no bos_token_id to begin with; give one of the two")
        return torch.tensor([bos], device=self.model.device)

    def request(self, columns: int, longest: int) -> Request:
        """What is to be decoded, and what of it returned.

        Args:
            columns: of the prompts. longest: the tokens of the longest one.

        Raises:
            ValueError: naming the argument, its value and what is allowed.
        """
        values = dict(self.values)
        eos, pad, _, mask = (_ids(name, values.pop(name, None), self.model) for name in TOKENS)
        own_eos = self.model.config.eos_token_id
        tokens = TokenIds.of(self.model, mask[0] if mask else None, own_eos if own_eos in eos or not eos else eos[0])
        ends = {tokens.eos, *eos}
        if ends == {own_eos} and tokens.end_of_turn is not None:
            ends.add(tokens.end_of_turn)

        tokenizer = values.pop("tokenizer", None)
        stops = texts_of("stop_strings", values.pop("stop_strings")) if "stop_strings" in values else []
        if not all(stops):
            raise ValueError("stop_strings holds an empty text; it must hold texts that can end an answer")
        if stops and tokenizer is None:
            raise ValueError("stop_strings need the tokenizer: give tokenizer=... beside them")
        returns_dict = bool(values.pop("return_dict_in_generate", False))
        if values.pop("token_type_ids", torch.zeros(())).any():
            raise ValueError("token_type_ids holds other numbers than 0, but the model knows one type of token")

        if "use_cache" in values:
            values["cache"] = "prefix" if values.pop("use_cache") else "none"
        values |= _temperature(values.pop("do_sample", None), values.pop("temperature", None))
        length = self._length(values, columns)
        if length is not None:
            block = values.get("block_length", BLOCK_LENGTH)
            check_integer("block_length", block, 1)
            values["gen_length"] = -(-length // block) * block
            room = self.model.max_positions - longest
            if values["gen_length"] > room >= length:
                raise ValueError(f"max_new_tokens is {length}, which takes whole blocks of {block}, that is "
                                 f"{values['gen_length']} tokens; the prompt leaves room for {room}")
        settings = self.model.settings_class.from_keywords(values)
        return Request(settings, tokens, length or settings.gen_length, pad[0] if pad else None, sorted(ends), stops,
                       tokenizer, returns_dict)

    @staticmethod
    def _length(values: dict[str, Any], columns: int) -> int | None:
        """The tokens that are wanted, if transformers' names say it, which leave `values`."""
        length = values.pop("max_new_tokens", None)
        total = values.pop("max_length", None)
        if length is not None:
            check_integer("max_new_tokens", length, 1)
        elif total is not None:
            check_integer("max_length", total, 1)
            length = total - columns
            if length < 1:
                raise ValueError(f"max_length is {total}, and counts the prompt, which has {columns} tokens; give "
                                 "more, or max_new_tokens in its place")
        return length


def _temperature(do_sample: bool | None, temperature: float | None) -> dict[str, float]:
    """The setting for transformers' pair of do_sample and temperature; nothing where neither was given."""
    if do_sample is not None and not isinstance(do_sample, bool):
        raise ValueError(f"do_sample is {short(do_sample)}; it must be True or False")
    if do_sample and temperature == 0:
        raise ValueError("temperature is 0, which takes the likeliest token; with do_sample=True it must be above 0")
    if do_sample is False and temperature not in (None, 0, 1):  # 1 is transformers' neutral one
        raise ValueError(f"temperature is {short(temperature)}, but do_sample=False takes the likeliest token; leave "
                         "one of them out")
    if do_sample is None:
        return {} if temperature is None else {"temperature": temperature}
    return {"temperature": (1.0 if temperature is None else temperature) if do_sample else 0.0}


def _same(value: Any, neutral: Any) -> bool:
    return isinstance(value, (int, float, bool)) and isinstance(value, bool) == isinstance(neutral, bool) \
        and value == neutral


_PLAIN = GenerationConfig()


def _fields(config: GenerationConfig | None) -> dict[str, Any]:
    """What a GenerationConfig says, by name."""
    if config is None:
        return {}
    fields = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    fields.pop("transformers_version", None)
    return {name: value for name, value in fields.items() if value is not None or not hasattr(_PLAIN, name)}


def _ids(name: str, value: Any, model: AnsweringModel) -> list[int]:
    """A special token's ids: none, one, or of EOS several."""
    if isinstance(value, Tensor):
        value = value.tolist()
    ids = [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
    if len(ids) > 1 and name != "eos_token_id":
        raise ValueError(f"{name} is {short(value)}; it must be one token")
    for token in ids:
        check_integer(name, token, 0, model.vocabulary_size - 1)
    return ids


# --- The answer as it was asked for -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What to decode, and what of it to return.

    length: tokens of the answer that are wanted, at most settings.gen_length. pad: fills what stands behind the end of
    an answer, the first token of `ends`; None leaves it as the model wrote it. stops: texts that end an answer too, and
    the tokenizer to see them.
    """

    settings: DecodingSettings
    tokens: TokenIds
    length: int
    pad: int | None
    ends: list[int]
    stops: list[str]
    tokenizer: Any
    returns_dict: bool

    @property
    def changes(self) -> bool:
        """Whether what is returned is not simply what was decoded."""
        return self.pad is not None or bool(self.stops) or self.length < self.settings.gen_length

    def finish(self, answers: Tensor) -> tuple[Tensor, Tensor]:
        """Answers as they are returned, int64 [R, n], and how long each is before what fills it up, int64 [R].

        answers: int64 [R, m], their first blocks or all; n is m or `length`.
        """
        answers = answers[:, : self.length]
        ends = torch.full((len(answers),), answers.shape[1], device=answers.device)
        if self.pad is not None:
            is_end = torch.isin(answers, torch.tensor(self.ends, device=answers.device))
            ends = torch.where(is_end.any(dim=1), is_end.long().argmax(dim=1) + 1, ends)
        if self.stops:
            stopped = [self._stop(ids) for ids in answers.tolist()]
            ends = torch.minimum(ends, torch.tensor(stopped, device=answers.device))
        filler = self.tokens.eos if self.pad is None else self.pad
        behind = torch.arange(answers.shape[1], device=answers.device) >= ends[:, None]
        return answers.masked_fill(behind, filler), ends

    def _stop(self, ids: list[int]) -> int:
        """The number of tokens up to the one that completes a stop string; all where there is none."""

        def has_stop(count: int) -> bool:
            text = self.tokenizer.decode(ids[:count])
            return any(stop in text for stop in self.stops)

        return bisect_left(range(len(ids)), True, key=has_stop)


class _FinishedBlocks:
    """A streamer between decoding and another one, which gets what is returned and not what was decoded."""

    def __init__(self, streamer: Any, request: Request):
        self.streamer = streamer
        self.request = request
        self.blocks: list[Tensor] | None = None  # None before the prompt
        self.sent = 0

    def put(self, value: Tensor) -> None:
        """Receive the prompt, then blocks [R, L], and hand on what is left of each."""
        if self.blocks is None:
            self.blocks = []
            self.streamer.put(value)
            return
        self.blocks.append(value)
        answers, ends = self.request.finish(torch.cat(self.blocks, dim=1))
        longest = int(ends.max())
        if longest > self.sent:
            self.streamer.put(answers[:, self.sent : longest])
            self.sent = longest

    def __getattr__(self, name: str) -> Any:  # end, and what else it may have: put_draft, put_step
        return getattr(self.streamer, name)
