"""What lm-eval's own command line needs to build a model of this repository from `--model_args`.

The families' eval.py register their models with it, and are run: see llada/eval.py.
"""

from __future__ import annotations

import sys

import torch

from dpad.engine import loading
from dpad.engine.completion import decoding_options
from dpad.evaluation.adapter import DiffusionLM
from dpad.evaluation.journal import Journal
from dpad.evaluation.runs import run_folder


class CommandLineLM(DiffusionLM):
    """What `--model_args` takes, all optional:

    checkpoint (or pretrained): a name of models.py, a folder or a hub id. revision: on the hub. dtype. journal: a
    folder to keep finished answers in, so that the same command goes on after an interruption. prompt_limit,
    mc_samples: see harness.DiffusionLM. Then the settings of
    `completion.decoding_options`, which are run.py's flags: gen_length, block_length, threshold, dropout_strategy, ...

    A subclass names its `family` (a key of loading.FAMILIES) and the `default` checkpoint.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """

    family: str
    default: str

    def __init__(self, checkpoint: str | None = None, pretrained: str | None = None, revision: str | None = None,
                 dtype: str | None = None, device: str | None = None, batch_size: int | str = 1,
                 max_batch_size: int | None = None, journal: str | None = None,
                 prompt_limit: int | None = None, mc_samples: int = 128, **settings):
        if checkpoint and pretrained:
            raise ValueError("checkpoint and pretrained mean the same; give one")
        if not str(batch_size).isdecimal() and batch_size != "auto":
            raise ValueError(f'batch_size is {batch_size!r}; it must be an integer of at least 1, or "auto"')
        try:
            options = decoding_options(loading.FAMILIES[self.family], **settings)
        except TypeError as error:
            raise ValueError(f"model_args: {str(error).removeprefix('decoding_options() ')}") from error
        if device and device.startswith("cuda") and not torch.cuda.is_available():
            device = None  # lm-eval's default is cuda:0; without a GPU its own models take the CPU as well
        name = str(checkpoint or pretrained or self.default)  # lm-eval reads a name such as 1.5 as a number
        loaded = loading.load(name, device=device, dtype=dtype, revision=revision)
        if loaded.family != self.family:
            raise ValueError(f"checkpoint {loaded.checkpoint!r} is a {loaded.family} model, not a {self.family} one")
        super().__init__(loaded, options, batch_size=batch_size if batch_size == "auto" else int(batch_size),
                         prompt_limit=prompt_limit, mc_samples=mc_samples)
        if journal:
            self.journal = Journal(run_folder(journal, "", "lm-eval", loaded, self.settings))


def main(program: str) -> int:
    """lm-eval's command line; an argument that cannot be used is one line that begins with `program`, and status 2."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except ValueError as error:
        print(f"{program}:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0
