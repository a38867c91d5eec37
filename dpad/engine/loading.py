"""The names that people give to models, and how to load one: checkpoint, tokenizer, generate call, chat template.

    from dpad.engine import loading
    loaded = loading.load("tiny")          # or instruct, 1.5, base, a folder, a hub id
    loaded.generate(loaded.model, loaded.encode(["Tom has 3 bags ..."]).input_ids, gen_length=256)

A family of models is one package (llada/) and one entry of FAMILIES. Imported, never run.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpad import ROOT

if TYPE_CHECKING:
    import torch
    from transformers import BatchEncoding, PreTrainedTokenizerBase

    from dpad.engine.decoding import UnmaskingRule
    from dpad.engine.transformer import MaskedDiffusionModel

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Family:
    """A family of models: its package, the class of its models there, and the names of its checkpoints.

    package: has `generate.generate`. model_class: there. rule: the UnmaskingRule of `generate`, which says what its
    settings are and checks them. names: what people type -> folder or hub id. raw_prompt: parts of checkpoint names
    whose published numbers were measured on the raw prompt, without the chat template. bos_before_raw: such a prompt
    follows a BOS token. stop_strings: answers are cut at a task's stop strings; otherwise at EOS alone. likelihood: how
    its published likelihoods draw masks, one of likelihood.SCHEMES.
    """

    package: str
    model_class: str
    rule: str
    names: dict[str, str]
    raw_prompt: tuple[str, ...]
    bos_before_raw: bool
    stop_strings: bool
    likelihood: str

    def import_rule(self) -> type[UnmaskingRule]:
        return getattr(import_module(f"{self.package}.generate"), self.rule)


# Keyed by `model_type` in config.json.
FAMILIES = {
    "llada": Family(
        package="llada",
        model_class="LLaDAModelLM",
        rule="LLaDARule",
        names={
            "tiny": str(ROOT / "checkpoints" / "llada-tiny"),
            "instruct": "GSAI-ML/LLaDA-8B-Instruct",
            "1.5": "GSAI-ML/LLaDA-1.5",
            "base": "GSAI-ML/LLaDA-8B-Base",
        },
        raw_prompt=("base", "1.5"),
        bos_before_raw=False,
        stop_strings=True,
        likelihood="counts",
    ),
    "dream": Family(
        package="dream",
        model_class="DreamModel",
        rule="DreamRule",
        names={
            "dream-tiny": str(ROOT / "checkpoints" / "dream-tiny"),
            "dream-instruct": "Dream-org/Dream-v0-Instruct-7B",
            "dream-base": "Dream-org/Dream-v0-Base-7B",
        },
        raw_prompt=("base",),
        bos_before_raw=True,
        stop_strings=False,
        likelihood="rates",
    ),
}
NAMES = {name: checkpoint for family in FAMILIES.values() for name, checkpoint in family.names.items()}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to use. `generate` is its family's generate call; `chat_template` says whether prompts should go
    through the tokenizer's chat template by default (the convention that the published numbers were measured with)."""

    name: str
    checkpoint: str
    family: str
    model: MaskedDiffusionModel
    tokenizer: PreTrainedTokenizerBase
    generate: Callable[..., Any]
    chat_template: bool

    def encode(self, prompts: list[str], chat_template: bool | None = None) -> BatchEncoding:
        """Token ids and attention mask [R, P] of prompts, padded on the left, on the model's device.

        chat_template: put each prompt into a user's turn of the chat template (None: this model's default).
        """
        chosen = self.chat_template if chat_template is None else chat_template
        return self.encode_text([self.chat(prompt) if chosen else self.raw(prompt) for prompt in prompts])

    def encode_text(self, texts: list[str]) -> BatchEncoding:
        """The same for texts that are complete: nothing is put around them."""
        return self.tokenizer(
            texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False,
            return_token_type_ids=False,
        ).to(self.model.device)

    def chat(self, prompt: str) -> str:
        """The text of a conversation in which the user said `prompt` and the assistant is about to answer."""
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )

    def raw(self, prompt: str) -> str:
        """The text that a prompt without the chat template becomes: with BOS before it where the family wants one."""
        return self.tokenizer.bos_token + prompt if FAMILIES[self.family].bos_before_raw else prompt


def load(
    name: str, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> LoadedModel:
    """Load a model by the name that people know, from a folder or from the hub, without remote code.

    Args:
        name: one of NAMES, a checkpoint folder, or a hub id (owner/name).
        device: None takes the first GPU, and the CPU where there is none.
        dtype: one of DTYPES; None takes bfloat16 on a GPU and float32 on the CPU.
        revision: branch, tag or commit on the hub.

    Raises:
        ValueError: one sentence that says what is wrong with the name, the device, the dtype or the checkpoint.
    """
    device, dtype = placement(device, dtype)
    checkpoint = resolve(name)
    options = _hub_options(checkpoint, revision)
    family_name = _family_of(name, checkpoint, options)
    family = FAMILIES[family_name]
    model_class = getattr(import_module(family.package), family.model_class)
    with _quiet_if_small(checkpoint):
        # Straight to the device: a GPU machine need not have room for the weights in its main memory.
        model = model_class.from_pretrained(checkpoint, dtype=dtype, device_map={"": device}, **options).eval()
    tokenizer = _tokenizer(checkpoint, options)
    return LoadedModel(
        name=name, checkpoint=checkpoint, family=family_name, model=model, tokenizer=tokenizer,
        generate=import_module(f"{family.package}.generate").generate,
        chat_template=tokenizer.chat_template is not None and not measured_raw(checkpoint, family),
    )


def measured_raw(checkpoint: str, family: Family) -> bool:
    """Whether the published numbers of a checkpoint (folder or hub id) were measured on the raw prompt.

    By the last part of its name, as in the authors' code; --chat_template on or off says otherwise.
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
    return FAMILIES[_family_of(name, checkpoint, _hub_options(checkpoint, revision))]


def resolve(name: str) -> str:
    """The folder or hub id that a name stands for; ValueError when it can be neither."""
    if name in NAMES:
        return NAMES[name]
    if Path(name).is_dir():
        return str(Path(name).resolve())
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise ValueError(f"model is {name!r}; it must be {', '.join(NAMES)}, an existing checkpoint folder or a hub id "
                     "(owner/name)")


def placement(
    device: str | torch.device | None, dtype: str | torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """Where a model's weights go and in which type: `load`'s defaults filled in; ValueError as there."""
    import torch

    device = _device(device)
    if device.type == "cuda":
        # cuDNN's attention makes a plan for every shape that it meets, and suffixes are of a new length in every block.
        torch.backends.cuda.enable_cudnn_sdp(False)
    if dtype is None:
        dtype = "float32" if device.type == "cpu" else "bfloat16"
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
        dtype = getattr(torch, dtype)
    return device, dtype


def _device(device: str | torch.device | None) -> torch.device:
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device is {str(device)!r}; it must be cpu, cuda or another device that this installation of "
                         "torch can use") from error
    if chosen.type == "mps":
        raise ValueError("device is 'mps'; it must be one with float64, which confidences are computed in: cpu or cuda")
    return chosen


def _hub_options(checkpoint: str, revision: str | None) -> dict[str, Any]:
    """Arguments of transformers' loaders: which revision, and whether the local cache is all there is."""
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    if not Path(checkpoint).is_dir():
        options["local_files_only"] = not _hub_answers(checkpoint, revision)
    return options


def _hub_answers(checkpoint: str, revision: str | None) -> bool:
    """Whether the hub can be asked for this model; False when it is out of reach and only the local cache is left.

    Asked once and at once: transformers' own calls would try again for half a minute a file before they gave up.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        HfApi().model_info(checkpoint, revision=revision, timeout=10)
        return True
    except RepositoryNotFoundError as error:
        raise ValueError(f"model {checkpoint!r} is not on the hub, or is not open to this account") from error
    except RevisionNotFoundError as error:
        raise ValueError(f"revision is {revision!r}; model {checkpoint!r} has no such branch, tag or commit") from error
    except HfHubHTTPError as error:
        raise ValueError(f"the hub refuses model {checkpoint!r}: {str(error).splitlines()[0]}") from error
    except Exception:  # whatever the HTTP library of the day raises (it has changed twice): the hub did not answer
        return False


def _family_of(name: str, checkpoint: str, options: dict) -> str:
    from transformers import PretrainedConfig

    if Path(checkpoint).is_dir() and not (Path(checkpoint) / "config.json").is_file():
        raise ValueError(f"checkpoint {checkpoint!r} has no config.json: it must be a folder written by "
                         "save_pretrained or downloaded from the hub")
    try:
        config, _ = PretrainedConfig.get_config_dict(checkpoint, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        if Path(checkpoint).is_dir():
            raise ValueError(f"checkpoint {checkpoint!r} has a config.json that can not be read") from error
        raise ValueError(f"model {name!r}: there is no such folder, {checkpoint} is not in the local cache, and the "
                         "hub is out of reach. `-m tiny` needs none of them") from error
    model_type = str(config.get("model_type", "unnamed")).lower()
    if model_type not in FAMILIES:
        raise ValueError(f"checkpoint {checkpoint!r} has a config.json of model_type {model_type!r}; the families here "
                         f"are {', '.join(FAMILIES)}")
    return model_type


@contextmanager
def _quiet_if_small(checkpoint: str):
    """Leave out transformers' progress bar for a checkpoint that loads in a moment."""
    from transformers.utils import logging

    small = Path(checkpoint).is_dir() and sum(f.stat().st_size for f in Path(checkpoint).glob("*.safetensors")) < 1e9
    shown = logging.is_progress_bar_enabled()
    if small:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if small and shown:
            logging.enable_progress_bar()


def _tokenizer(checkpoint: str, options: dict):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"checkpoint {checkpoint!r} has no tokenizer that can be read: "
                         f"{' '.join(str(error).split())}") from error
