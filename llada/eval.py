"""LLaDA under lm-eval's own command line, as the model `dpad_llada`; this module registers it and hands over:

    python -m llada.eval --model dpad_llada --model_args checkpoint=tiny,gen_length=256,dropout_strategy=gaussian \
        --tasks arithmetic-50 --include_path dataset/tasks --apply_chat_template --fewshot_as_multiturn False

(lm-eval 0.4.13 finds models only in modules that were imported, so `lm_eval --model dpad_llada` alone does not know the
name.) All of lm-eval's flags work; run.py is the shorter way and keeps a journal by default.
"""

from __future__ import annotations

import sys

import torch
from lm_eval.api.registry import register_model

import models
from completion import decoding_options
from harness import DiffusionLM, run_folder
from journal import Journal


@register_model("dpad_llada")
class LLaDAEval(DiffusionLM):
    """What `--model_args` takes, all optional:

    checkpoint (or pretrained): a name of models.py, a folder or a hub id. revision: on the hub. dtype. journal: a
    folder to keep finished answers in, so that the same command goes on after an interruption. Then the settings of
    `completion.decoding_options`, which are run.py's flags: gen_length, block_length, threshold, dropout_strategy, ...

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """

    def __init__(self, checkpoint: str | None = None, pretrained: str | None = None, revision: str | None = None,
                 dtype: str | None = None, device: str | None = None, batch_size: int | str = 1,
                 max_batch_size: int | None = None, journal: str | None = None, **settings):
        if checkpoint and pretrained:
            raise ValueError("checkpoint and pretrained mean the same; give one")
        if not str(batch_size).isdecimal():
            raise ValueError(f"batch_size is {batch_size!r}; it must be an integer of at least 1")
        try:
            options = decoding_options(**settings)
        except TypeError as error:
            raise ValueError(f"model_args: {str(error).removeprefix('decoding_options() ')}") from error
        if device and device.startswith("cuda") and not torch.cuda.is_available():
            device = None  # lm-eval's default is cuda:0; without a GPU its own models take the CPU as well
        # lm-eval reads a value such as 1.5 as a number; names of models are text.
        loaded = models.load(str(checkpoint or pretrained or "instruct"), device=device, dtype=dtype, revision=revision)
        super().__init__(loaded, options, batch_size=int(batch_size))
        if journal:
            self.journal = Journal(run_folder(journal, "", "lm-eval", loaded, self.settings))


def main() -> int:
    """lm-eval's command line, with this model registered; an argument that cannot be used is one line, status 2."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except ValueError as error:
        print("llada.eval:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
