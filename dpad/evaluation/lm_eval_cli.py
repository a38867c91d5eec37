"""Models of this repository under lm-eval's own command line, as `--model dpad`.

    python -m dpad.evaluation.lm_eval_cli --model dpad --tasks arithmetic-50 --include_path dataset/tasks \
        --model_args checkpoint=tiny,gen_length=256,dropout_strategy=gaussian \
        --apply_chat_template --fewshot_as_multiturn False

All of lm-eval's flags work. (`lm_eval --model dpad` alone does not know the name, because lm-eval 0.4.13 finds only
models in modules that were imported.) run.py is the shorter way, and keeps a journal by default.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from lm_eval.api.registry import register_model

from dpad.engine.loading import Family, family_of, load
from dpad.engine.settings import DecodingSettings
from dpad.evaluation.adapter import DiffusionLM, describe_settings
from dpad.evaluation.journal import Journal
from dpad.evaluation.runs import run_folder


@register_model("dpad")
class CommandLineLM(DiffusionLM):
    """A model from `--model_args`, which are all optional:

    checkpoint (or pretrained): a name such as tiny or instruct, a folder, or a hub id. revision: on the hub. dtype.
    journal: a folder in which finished answers are kept, so that the same command goes on after an interruption.
    prompt_limit, mc_samples, after_eos: see DiffusionLM. All others are decoding settings by their names or flags:
    gen_length, block_length (or block_size), threshold, dropout_strategy, ...

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """

    def __init__(
        self, checkpoint: str | None = None, pretrained: str | None = None, revision: str | None = None,
        dtype: str | None = None, device: str | None = None, batch_size: int | str = 1,
        max_batch_size: int | None = None, journal: str | None = None, prompt_limit: int | None = None,
        mc_samples: int = 128, after_eos: str = "drop", **choices: Any,
    ) -> None:
        if checkpoint and pretrained:
            raise ValueError("checkpoint and pretrained mean the same; give one")
        name = str(checkpoint or pretrained or "instruct")  # lm-eval reads a name such as 1.5 as a number
        settings = settings_from(family_of(name, revision), choices)
        if device and device.startswith("cuda") and not torch.cuda.is_available():
            device = None  # lm-eval's default is cuda:0; without a GPU its own models take the CPU as well

        loaded = load(name, device=device, dtype=dtype, revision=revision)
        answering: dict[str, Any] = {
            "batch_size": int(batch_size) if str(batch_size).isdecimal() else batch_size,
            "prompt_limit": prompt_limit,
            "mc_samples": mc_samples,
        }
        description = describe_settings(loaded, settings, **answering)
        saved = Journal(run_folder(journal, "", "lm-eval", loaded, description)) if journal else None
        super().__init__(loaded, settings, **answering, after_eos=after_eos, journal=saved)


def settings_from(family: Family, choices: dict[str, Any]) -> DecodingSettings:
    """Decoding settings from model_args, in which lm-eval has turned numbers and True into Python's values."""
    entries = {key: entry for entry in family.settings.choices() for key in (entry.name, entry.label)}
    values = {}
    for key, value in choices.items():
        if entry := entries.get(key):
            values[entry.name] = entry.parse(str(value))
        else:
            values[key] = value  # from_choices says that there is no such setting
    return family.settings.from_choices(values)


def main() -> int:
    """lm-eval's command line; an argument that cannot be used ends it with one line and status 2."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except ValueError as error:
        print("lm_eval_cli:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
