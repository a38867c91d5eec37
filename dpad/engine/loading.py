"""The names that people give to models, and how to load one: checkpoint, tokenizer, chat template, generate call.

    from dpad import load
    llada = load("tiny")          # or instruct, 1.5, base, a checkpoint folder, a hub id; adapter=FOLDER adds a LoRA
    output = llada.generate(**llada.encode(["Tom has 3 bags ..."]), gen_length=256, threshold=0.9)

A family of models is one package (llada/) and one entry of FAMILIES. Imported, never run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpad import ROOT
from dpad.engine import quantization
from dpad.engine.adapters import Adapter, check_adapter, merge_into, read_adapter, recorded_template
from dpad.engine.answer_text import AnswerText
from dpad.engine.checkpoint import (
    LARGE,
    check_folder,
    check_tokenizer_files,
    find_folder,
    is_hub_id,
    quant_method,
    read_config,
    similar,
    stored_type,
)
from dpad.engine.checks import check_choice, check_text, one_line, short, suggest, texts_of
from dpad.engine.template_trial import TRIAL, try_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import BatchEncoding

    from dpad.engine.decoding import DecodingOutput
    from dpad.engine.pretrained import PretrainedDiffusionModel
    from dpad.engine.settings import DecodingSettings
    from dpad.engine.transformer import MaskedDiffusionModel
    from dpad.engine.unmasking import UnmaskingRule

DTYPES = ("float32", "bfloat16", "float16")
AUTO = "auto"  # in place of one of DTYPES


@dataclass(frozen=True)
class Family:
    """A family of models: its classes, the names of its checkpoints, and the conventions of its published numbers.

    name: `model_type` in config.json. package: holds model_class, network_class (in network.py), settings_class (in
    settings.py) and rule_class (in generate.py). names: what people type -> folder or hub id. raw_prompt: parts of the
    names of checkpoints whose published numbers were measured on the raw prompt, without the chat template.
    bos_before_raw: put BOS before a raw prompt. stop_strings: cut answers at a task's stop strings; otherwise at EOS
    alone. likelihood: how its published likelihoods draw masks, one of likelihood.SCHEMES. facts: by name, the fields
    of config.json in which a checkpoint differs from the defaults of the configuration's class; for its size, before it
    is fetched. decodes_like: the package whose settings and rule it has; by default its own.
    """

    name: str
    package: str
    model_class: str
    network_class: str
    settings_class: str
    rule_class: str
    names: dict[str, str]
    raw_prompt: tuple[str, ...]
    bos_before_raw: bool
    stop_strings: bool
    likelihood: str
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    decodes_like: str = ""

    @property
    def model(self) -> type[PretrainedDiffusionModel]:
        """The class of its models, as transformers has them."""
        return getattr(import_module(self.package), self.model_class)

    @property
    def network(self) -> type[MaskedDiffusionModel]:
        """The class of its models for decoding alone."""
        return getattr(import_module(f"{self.package}.network"), self.network_class)

    @property
    def settings(self) -> type[DecodingSettings]:
        """The class of its decoding settings."""
        return getattr(import_module(f"{self.decodes_like or self.package}.settings"), self.settings_class)

    @property
    def rule(self) -> type[UnmaskingRule]:
        """The class of its unmasking rule."""
        return getattr(import_module(f"{self.decodes_like or self.package}.generate"), self.rule_class)


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="llada",
            package="llada",
            model_class="LLaDAModelLM",
            network_class="LLaDANetwork",
            settings_class="LLaDASettings",
            rule_class="LLaDARule",
            names={
                "tiny": str(ROOT / "checkpoints" / "llada-tiny"),
                "instruct": "GSAI-ML/LLaDA-8B-Instruct",
                "1.5": "GSAI-ML/LLaDA-1.5",
                "base": "GSAI-ML/LLaDA-8B-Base",
                "d3llm": "d3LLM/d3LLM_LLaDA",
                "dparallel": "Zigeng/dParallel-LLaDA-8B-instruct",
            },
            raw_prompt=("base", "1.5"),
            bos_before_raw=False,
            stop_strings=True,
            likelihood="counts",
        ),
        Family(
            name="dream",
            package="dream",
            model_class="DreamModel",
            network_class="DreamNetwork",
            settings_class="DreamSettings",
            rule_class="DreamRule",
            names={
                "dream-tiny": str(ROOT / "checkpoints" / "dream-tiny"),
                "dream-instruct": "Dream-org/Dream-v0-Instruct-7B",
                "dream-base": "Dream-org/Dream-v0-Base-7B",
                "dream-coder": "Dream-org/Dream-Coder-v0-Instruct-7B",
                "dream-coder-base": "Dream-org/Dream-Coder-v0-Base-7B",
                "diffucoder": "apple/DiffuCoder-7B-cpGRPO",
                "diffucoder-instruct": "apple/DiffuCoder-7B-Instruct",
                "diffucoder-base": "apple/DiffuCoder-7B-Base",
                "d3llm-dream": "d3LLM/d3LLM_Dream",
                "d3llm-coder": "d3LLM/d3LLM_Dream_Coder",
                "dparallel-dream": "Zigeng/dParallel_Dream_7B_Instruct",
            },
            raw_prompt=("base",),
            bos_before_raw=True,
            stop_strings=False,
            likelihood="rates",
        ),
        Family(
            name="illada",
            package="dream",
            model_class="ILLaDAModelLM",
            network_class="ILLaDANetwork",
            settings_class="LLaDASettings",
            rule_class="LLaDARule",
            names={
                "illada": "GSAI-ML/iLLaDA-8B-Instruct",
                "illada-base": "GSAI-ML/iLLaDA-8B-Base",
            },
            raw_prompt=("base",),
            bos_before_raw=False,
            stop_strings=True,
            likelihood="counts",
            facts=dict.fromkeys(("illada", "illada-base"), {"eos_token_id": 0}),  # EOS is not known, and takes no room
            decodes_like="llada",
        ),
    )
}
NAMES = {name: checkpoint for family in FAMILIES.values() for name, checkpoint in family.names.items()}


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer, ready to answer.

    name: as it was asked for; with an adapter also that one's name and the beginning of its hash, so that models with
    different adapters have different names. checkpoint: folder or hub id. chat_template: whether prompts go through the
    tokenizer's chat template by default: as they did in a training here (base.json), and otherwise as in the
    measurement of the published numbers. adapter: what has been merged into the weights. quantize: how they are
    quantized, one of quantization.SCHEMES, or the method that the checkpoint names; None: they are plain numbers.
    """

    name: str
    checkpoint: str
    family: Family
    model: MaskedDiffusionModel
    tokenizer: Any  # a PreTrainedTokenizerBase; its methods are typed for one text and for many alike
    chat_template: bool
    adapter: Adapter | None = None
    quantize: str | None = None

    @property
    def pretrained(self) -> PretrainedDiffusionModel:
        """The model, with what transformers' models have; ValueError where it was loaded without (`load`'s bare)."""
        if not isinstance(self.model, self.family.model):
            raise ValueError(f"bare is True, so that {self.name} was loaded without what this needs; leave it out")
        return self.model

    def describe_weights(self) -> dict[str, str]:
        """What a record says of the numbers that the model computes with, and where."""
        numbers = {"dtype": str(self.model.dtype).removeprefix("torch."), "device": self.model.device.type}
        return numbers | ({"quantize": self.quantize} if self.quantize else {})

    @property
    def title(self) -> str:
        """The model's name as a sentence has it: LLaDA-tiny, LLaDA-8B-Instruct."""
        last = Path(self.checkpoint).name
        if last.startswith(f"{self.family.name}-"):  # the embedded models' folders
            last = self.family.settings.family + last[len(self.family.name):]
        return f"{last}+{self.adapter.label}" if self.adapter else last

    @cached_property
    def answer_text(self) -> AnswerText:
        """What turns an answer's tokens into its text."""
        config = self.model.config
        return AnswerText(self.tokenizer, config.eos_token_id, config.mask_token_id)

    def generate(
        self, input_ids: Tensor, settings: DecodingSettings | None = None, *, attention_mask: Tensor | None = None,
        streamer: Any = None, on_forward: Callable[[int, bool], None] | None = None, **keywords: Any,
    ) -> DecodingOutput:
        """Answer every prompt, block by block.

        Args:
            input_ids: int64 [R, P], the prompts; unequal ones are padded on the left.
            settings: how to decode, an object of `family.settings`. Its fields may be given as keywords instead.
            attention_mask: [R, P], 0 at the padding, 1 elsewhere.
            streamer, on_forward: see `decoding.decode`.

        Raises:
            ValueError: naming the argument, its value and what is allowed.
        """
        from dpad.engine.decoding import decode
        from dpad.engine.settings import TokenIds

        if settings is not None and keywords:
            raise ValueError(f"{', '.join(keywords)}: give either settings or keywords, not both")
        rule = self.family.rule(settings or self.family.settings(**keywords), TokenIds.of(self.model))
        return decode(self.model, rule, input_ids, attention_mask, streamer, on_forward)

    def encode(self, prompts: str | Sequence[str], chat_template: bool | None = None) -> BatchEncoding:
        """Token ids and attention mask [R, P] of prompts, padded on the left, on the model's device.

        prompts: one text or several. chat_template: put each prompt into a user's turn of the chat template (None: this
        model's default).

        Raises:
            ValueError: there is no prompt, or one is not text.
        """
        use_template = self.chat_template if chat_template is None else chat_template
        texts = texts_of("prompts", prompts)
        return self.encode_text([self.chat(prompt) if use_template else self.raw(prompt) for prompt in texts])

    def encode_text(self, texts: str | Sequence[str]) -> BatchEncoding:
        """The same for texts that are complete: nothing is put around them."""
        return self.tokenizer(
            texts_of("texts", texts), return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False,
            return_token_type_ids=False,
        ).to(self.model.device)

    def decode(self, answers: Tensor) -> list[str]:
        """The texts of answers, int64 [R, G]: each up to its first EOS or end-of-turn token, without special tokens.

        `generate` returns prompts and answers together: `decode(output.sequences[:, input_ids.shape[1]:])`.
        """
        return [self.answer_text.decode(ids) for ids in answers.tolist()]

    def chat(self, prompt: str) -> str:
        """The text of a conversation in which the user said `prompt` and the assistant is about to answer."""
        check_text("prompt", prompt)
        return self.chat_turns([{"role": "user", "content": prompt}])

    def chat_turns(self, turns: list[dict[str, str]]) -> str:
        """The text of a conversation in which the assistant is about to answer; turns have `role` and `content`."""
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
            raise ValueError('turns must be a list of one or more {"role": text, "content": text}')
        for turn in turns:
            for key in ("role", "content"):
                check_text(key, turn.get(key))
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def raw(self, prompt: str) -> str:
        """The text that a prompt without the chat template becomes: with BOS before it where the family wants one."""
        check_text("prompt", prompt)
        return self.tokenizer.bos_token + prompt if self.family.bos_before_raw else prompt


def load(
    name: str, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None,
    revision: str | None = None, adapter: str | Path | None = None, quantize: str | None = None, bare: bool = False,
) -> LoadedModel:
    """Load a model by the name that people know, from a folder or from the hub, without remote code.

    Args:
        name: one of NAMES, a checkpoint folder, or a hub id (owner/name).
        device: None takes the first GPU of CUDA, or else that of a Mac (mps), or else the CPU.
        dtype: one of DTYPES; None takes bfloat16 on a GPU, or with int4, and otherwise float32 on the CPU. "auto"
            takes the faster of the two on a CPU (precision.py), and elsewhere what None does.
        revision: branch, tag or commit on the hub.
        adapter: a LoRA adapter as peft writes it, a folder or a hub id, to be merged into the weights.
        quantize: one of quantization.SCHEMES, for the layers' matrices; after an adapter has been merged into them.
        bare: without what transformers adds to a network (`model.generate`, `save_pretrained`, peft, ...), where that
            be: not with an adapter or quantized weights. It decodes the same. Importing transformers' models takes
            longer than all else before a first token.

    Raises:
        ValueError: one sentence that says what is wrong with the name, the device, the dtype, the checkpoint, the
            adapter or the quantization.
    """
    import torch

    device, dtype = placement(device, dtype, quantize)
    scheme = None if quantize is None else quantization.make_config(quantize, device, dtype)
    checkpoint = resolve(name)
    addition = None if adapter is None else find_adapter(adapter)
    options = _hub_options(checkpoint, revision)
    family = _family_of(name, checkpoint, options)
    folder = find_folder(checkpoint, **options)
    own_scheme = quant_method(read_config(folder))
    if quantize and own_scheme:
        raise ValueError(f"quantize is {quantize!r}, but checkpoint {checkpoint!r} has quantized weights already "
                         f"({own_scheme}); leave it out")
    if addition:
        check_adapter(addition, checkpoint, folder, family.model)
    model: MaskedDiffusionModel
    if bare and not (addition or scheme or own_scheme):
        model = family.network.load(folder, dtype, device).eval()
    else:
        with _quiet_if_small(folder):
            # Straight to the device: the machine's main memory may be too small for the weights.
            stored = getattr(torch, stored_type(folder)) if addition else dtype  # sums are rounded once
            how = {"quantization_config": scheme} if scheme and not addition else {}
            model = family.model.from_pretrained(folder, dtype=stored, device_map={"": device}, **how).eval()
    if options:
        model.config._commit_hash = folder.name  # of the hub's snapshot; a run's identity has it
    tokenizer = _tokenizer(folder, model, family)
    recorded = recorded_template(addition.folder) if addition else None
    recorded = recorded_template(folder) if recorded is None else recorded
    use_template = not measured_raw(checkpoint, family) if recorded is None else recorded
    if addition:
        merge_into(model, addition, dtype)
        if scheme:
            quantization.quantize_model(model, scheme)
    if quantize:
        quantization.check_quantized(model, quantize)
    return LoadedModel(
        name=f"{name.rstrip(os.sep)}+{addition.label}" if addition else name,
        checkpoint=checkpoint, family=family, model=model, tokenizer=tokenizer, adapter=addition,
        quantize=quantize or own_scheme,
        chat_template=tokenizer.chat_template is not None and use_template,
    )


def find_adapter(name: str | Path) -> Adapter:
    """An adapter by its folder or hub id, once its files have been looked at; no weight is read.

    Raises:
        ValueError: see `adapters.read_adapter`.
    """
    name = str(name)
    is_elsewhere = is_hub_id(name) and not os.path.exists(name)
    return read_adapter(name, **(_hub_options(name, None, kind="adapter") if is_elsewhere else {}))


def measured_raw(checkpoint: str, family: Family) -> bool:
    """Whether the published numbers of a checkpoint (folder or hub id) were measured on the raw prompt.

    The last part of its name decides, as in the authors' code; --chat_template overrides it.
    """
    return any(part in Path(checkpoint).name.lower() for part in family.raw_prompt)


def family_of(name: str, revision: str | None = None) -> Family:
    """The family of a model, from its name or its config.json; the weights are not touched.

    Raises:
        ValueError: as `load` does for a name or checkpoint that cannot be used.
    """
    for family in FAMILIES.values():
        if name in family.names:
            return family
    checkpoint = resolve(name)
    return _family_of(name, checkpoint, _hub_options(checkpoint, revision))


def resolve(name: str) -> str:
    """The folder or hub id that a name stands for; ValueError when it stands for neither."""
    if name in NAMES:
        return NAMES[name]
    if name and os.path.isdir(name):
        return str(Path(name).resolve())
    if os.path.isfile(name):
        find_folder(name)  # says that it must be a folder
    if is_hub_id(name) and not name.startswith((".", "-")):
        return name
    raise ValueError(f"model is {short(name, 200)}; it must be {', '.join(NAMES)}, an existing checkpoint folder or a "
                     f"hub id (owner/name){suggest(name, NAMES) or similar(Path(name))}")


def placement(
    device: str | torch.device | None, dtype: str | torch.dtype | None, quantize: str | None = None
) -> tuple[torch.device, torch.dtype]:
    """The device and type of a model's weights, with `load`'s defaults filled in; ValueError as there."""
    import torch

    device = _device(device)
    if dtype == AUTO:
        from dpad.engine.precision import faster_dtype

        dtype = faster_dtype() if device.type == "cpu" and quantize != "int4" else None
    if dtype is None:
        # torchao's kernel for int4 on a CPU is far slower in float32 than in bfloat16.
        dtype = "float32" if device.type == "cpu" and quantize != "int4" else "bfloat16"
    if isinstance(dtype, str):
        check_choice("dtype", dtype, (*DTYPES, AUTO))
    numbers: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if device.type == "mps" and numbers == torch.bfloat16:
        try:
            torch.ones(1, dtype=numbers, device=device)
        except (TypeError, RuntimeError) as error:
            raise ValueError("dtype is 'bfloat16', which this Mac's system does not have; give --dtype float16 or "
                             "float32") from error
    return device, numbers


def _device(device: str | torch.device | None) -> torch.device:
    import torch

    if device is None:
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {str(device)!r}; it must be cpu, cuda, cuda:1, mps or the like"
                         f"{suggest(device, ('cpu', 'cuda', 'mps'))}") from error
    gpus = torch.cuda.device_count() if place.type == "cuda" else 0
    if place.type == "cuda" and not gpus:
        raise ValueError(f"device is {str(device)!r}, but torch sees no GPU here; leave it out, or give cpu")
    if place.type == "cuda" and (place.index or 0) >= gpus:
        raise ValueError(f"device is {str(device)!r}, but torch sees {gpus} GPU{'s' * (gpus > 1)} here: "
                         f"{', '.join(f'cuda:{number}' for number in range(gpus))}")
    _try_device(place)
    if place.type == "meta":
        raise ValueError("device is 'meta', which holds no numbers; it must be cpu, cuda or mps")
    return place


def _try_device(place: torch.device) -> None:
    """Raise ValueError unless this installation of torch can put a tensor there."""
    import torch

    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device is {str(place)!r}, which this installation of torch cannot use here; it must be "
                         "cpu, cuda or mps") from error


def _hub_options(checkpoint: str, revision: str | None, kind: str = "model") -> dict[str, Any]:
    """Arguments of transformers' loaders: the revision, and whether only the local cache can be used."""
    if os.path.isdir(checkpoint):
        if revision is not None:
            raise ValueError(f"revision is {revision!r}, but {checkpoint!r} is a folder; only models on the hub have "
                             "revisions")
        return {}
    return {"revision": revision, "local_files_only": not _hub_answers(checkpoint, revision, kind)}


def _hub_answers(checkpoint: str, revision: str | None, kind: str) -> bool:
    """Whether the hub can be asked for this model; False when it is out of reach, so that only the cache is left.

    One short request decides. transformers' own calls would retry for half a minute per file before giving up.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        HfApi().model_info(checkpoint, revision=revision, timeout=10)
        return True
    except RepositoryNotFoundError as error:
        raise ValueError(f"{kind} {checkpoint!r} is not on the hub, or is not open to this account") from error
    except RevisionNotFoundError as error:
        raise ValueError(f"revision is {revision!r}; {kind} {checkpoint!r} has no such branch, tag or "
                         "commit") from error
    except HfHubHTTPError as error:
        raise ValueError(f"the hub refuses {kind} {checkpoint!r}: {str(error).splitlines()[0]}") from error
    except Exception:  # connection errors of any HTTP library that huggingface_hub may use: the hub did not answer
        return False


def find_config(name: str, revision: str | None = None) -> tuple[Family, Path]:
    """The family of a model, and the folder that has its config.json; of a hub id, no other file is downloaded.

    Raises:
        ValueError: as `load` does for a name or checkpoint that cannot be used.
    """
    checkpoint = resolve(name)
    folder = _config_folder(name, checkpoint, _hub_options(checkpoint, revision))
    return _family_at(folder, checkpoint), folder


def _config_folder(name: str, checkpoint: str, options: dict) -> Path:
    from huggingface_hub import hf_hub_download

    if os.path.isdir(checkpoint):
        folder = Path(checkpoint)
        check_folder(folder, with_weights=False)
        return folder
    try:
        return Path(hf_hub_download(checkpoint, "config.json", **options)).parent
    except (OSError, ValueError) as error:
        raise ValueError(f"model {name!r}: there is no such folder, {checkpoint} is not in the local cache, and "
                         "the hub is out of reach; `-m tiny` works offline") from error


def _family_of(name: str, checkpoint: str, options: dict) -> Family:
    return _family_at(_config_folder(name, checkpoint, options), checkpoint)


def _family_at(folder: Path, checkpoint: str) -> Family:
    """The family that the config.json in a folder names."""
    model_type = read_config(folder)["model_type"]
    if model_type.lower() not in FAMILIES:
        experts = "moe" in model_type.lower()
        raise ValueError(f"checkpoint {checkpoint!r} has a config.json of model_type {short(model_type)}; the families "
                         f"here are {', '.join(FAMILIES)}{', without mixtures of experts' * experts}")
    return FAMILIES[model_type.lower()]


@contextmanager
def _quiet_if_small(folder: Path) -> Iterator[None]:
    """Hide transformers' progress bar for a checkpoint that loads in a moment."""
    from transformers.utils import logging

    small = sum(file.stat().st_size for file in folder.glob("*.safetensors") if file.is_file()) < LARGE
    was_enabled = logging.is_progress_bar_enabled()
    if small:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if small and was_enabled:
            logging.enable_progress_bar()


def _tokenizer(folder: Path, model: MaskedDiffusionModel, family: Family) -> Any:
    """The tokenizer of a checkpoint, whose tokens the model must know."""
    from transformers import AutoTokenizer

    name = f"checkpoint {str(folder)!r}"
    check_tokenizer_files(folder)

    def read() -> Any:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    try_tokenizer(name, read)
    try:
        tokenizer = read()
        largest = max(tokenizer.get_vocab().values())
        tokenizer.decode(tokenizer(TRIAL, add_special_tokens=False)["input_ids"])
    except Exception as error:  # libraries raise whatever they meet: KeyError, TypeError, their own kinds
        reason = one_line(f"{type(error).__name__}: {error}")
        raise ValueError(f"{name} has no tokenizer that can be read ({reason})") from error
    if largest >= model.vocabulary_size:
        raise ValueError(f"{name} has a tokenizer with token ids up to {largest}; the model's embedding has "
                         f"{model.vocabulary_size} rows")
    if tokenizer.pad_token is None:
        raise ValueError(f"{name} has a tokenizer without a pad token: is its tokenizer_config.json missing?")
    if tokenizer.bos_token is None and family.bos_before_raw:
        raise ValueError(f"{name} has a tokenizer without a BOS token, which prompts begin with")
    for entry in ("mask_token_id", "eos_token_id"):
        if tokenizer.convert_ids_to_tokens(getattr(model.config, entry)) is None:
            raise ValueError(f"{name}: config field {entry} is {getattr(model.config, entry)}, which is not a token of "
                             "its tokenizer")
    return tokenizer
