"""Models of this repository under lm-eval's own command line, as `--model dpad`.

    python -m dpad.evaluation.lm_eval_cli --model dpad --tasks arithmetic-50 --include_path dataset/tasks \
        --model_args checkpoint=tiny,dropout_strategy=gaussian,k_sigma=3,scale=1.6 \
        --apply_chat_template --fewshot_as_multiturn False

All of lm-eval's flags work, except --gen_kwargs, of which only `until` applies: decoding has its settings from
--model_args. (`lm_eval --model dpad` alone does not know the name, because lm-eval 0.4.13 finds only models in modules
that were imported.) run.py is the shorter way, and keeps a journal by default.

Several processes share the requests:  accelerate launch --multi_gpu -m dpad.evaluation.lm_eval_cli --model dpad ...
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import lm_eval
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.evaluator import simple_evaluate
from lm_eval.utils import simple_parse_args_string

from dpad.engine.command_line import say, use_utf8
from dpad.engine.loading import Family, family_of, load
from dpad.engine.methods import combine, find_method
from dpad.engine.settings import DecodingSettings
from dpad.evaluation import processes, sandbox
from dpad.evaluation.adapter import DiffusionLM, Request, describe_settings
from dpad.evaluation.processes import ALONE, Processes
from dpad.evaluation.runs import open_journal, run_folder

PATIENCE = 5  # seconds after which another process than the first says what is wrong, if it has not been ended


@register_model("dpad")
class CommandLineLM(DiffusionLM):
    """A model from `--model_args`, which are all optional:

    checkpoint (or pretrained): a name such as tiny or instruct, a folder, or a hub id. revision: on the hub. dtype.
    adapter: a LoRA adapter to be merged into its weights, a folder or a hub id. quantize: int8 or int4.
    journal: a folder in which finished answers are kept, so that the same command goes on after an interruption.
    prompt_limit, mc_samples, after_eos: see DiffusionLM. All others are decoding settings by the names of their
    flags: gen_length, block_length, threshold, dropout_strategy, ... method: a published way of decoding (methods.py),
    of which these replace one setting each.
    isolation: the least to accept for programs that the model writes, see sandbox.py.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """

    def __init__(
        self, checkpoint: str | None = None, pretrained: str | None = None, revision: str | None = None,
        dtype: str | None = None, device: str | None = None, batch_size: int | str = 1,
        max_batch_size: int | None = None, journal: str | None = None, prompt_limit: int | None = None,
        mc_samples: int = 128, after_eos: str = "drop", isolation: str | None = None, adapter: str | None = None,
        method: str | None = None, quantize: str | None = None, **choices: Any,
    ) -> None:
        sandbox.require_level(isolation)
        if checkpoint and pretrained:
            raise ValueError("checkpoint and pretrained mean the same; give one")
        name = str(checkpoint or pretrained or "instruct")  # lm-eval reads a name such as 1.5 as a number
        settings = settings_from(family_of(name, revision), choices, method, name)
        if device and device.startswith("cuda") and not torch.cuda.is_available():
            device = None  # lm-eval's default is cuda:0; without a GPU its own models take the CPU as well

        if max_batch_size is not None:
            raise ValueError(f"max_batch_size is {max_batch_size}; batch_size auto finds the largest batch by itself")
        self.processes = processes.join()
        if self.processes.count > 1 and device in (None, "cuda", "cuda:0"):
            device = processes.device(self.processes)
        # All processes make all the requests and have all the answers in the end. lm-eval lets the one whose LOCAL_RANK
        # is 0 report, of which there is one on each machine. A process alone sets nothing: accelerate would take it for
        # one of several, and this process could not train any more.
        if self.processes.count > 1:
            os.environ["LOCAL_RANK"] = str(self.processes.rank)

        loaded = load(name, device=device, dtype=dtype, revision=revision,
                      adapter=None if adapter is None else str(adapter), quantize=quantize)
        answering: dict[str, Any] = {
            "batch_size": int(batch_size) if str(batch_size).isdecimal() else batch_size,
            "prompt_limit": prompt_limit,
            "mc_samples": mc_samples,
        }
        description = describe_settings(loaded, settings, **answering)
        saved = None
        if journal:
            folder = run_folder(journal, "", "lm-eval", loaded, description)
            saved = open_journal(folder, from_scratch=False, processes=self.processes)
        super().__init__(loaded, settings, **answering, after_eos=after_eos, journal=saved,
                         progress=self.processes.rank == 0)
        if self.processes.rank > 0:
            logging.getLogger("lm_eval").setLevel(logging.ERROR)

    def answer(
        self, kind: str, instances: Sequence[Instance], processes: Processes = ALONE, hide_progress: bool = False
    ) -> list[Request]:
        """Answer this process's share of the requests, and take the other processes' answers to the rest."""
        requests = super().answer(kind, instances, self.processes, hide_progress)
        own = {request.key: self._known[request.key] for request in requests if request.key in self._known}
        for answers in self.processes.gather(own):
            self._known.update(answers)
        return requests


def settings_from(family: Family, choices: dict[str, Any], method: str | None = None,
                  model: str = "") -> DecodingSettings:
    """Decoding settings from model_args, in which lm-eval has turned numbers and True into Python's values."""
    entries = {key: entry for entry in family.settings.choices() for key in entry.names}
    values = {}
    for key, value in choices.items():
        if entry := entries.get(key):
            values[entry.name] = entry.parse(str(value))
        else:
            values[key] = value  # from_choices says that there is no such setting
    if method is not None:
        values, _ = combine(find_method(method), values, {}, family.settings, model)
    return family.settings.from_choices(values)


def evaluate(*args: Any, **options: Any) -> Any:
    """lm_eval.simple_evaluate, which its command line calls, after a check of what would be ignored in silence."""
    if options.get("model") == "dpad":
        if options.get("gen_kwargs"):
            check_gen_kwargs(options["model_args"] or {}, options["gen_kwargs"])
        if options.get("use_cache") and processes.current().count > 1:
            raise ValueError("--use_cache keeps the answers of each process apart; several processes share those of "
                             "--model_args journal=FOLDER")
    return simple_evaluate(*args, **options)


def check_gen_kwargs(model_args: str | dict[str, Any], gen_kwargs: str | dict[str, Any]) -> None:
    """Raise ValueError when lm-eval's --gen_kwargs have settings that decoding does not take from there."""
    model_args, gen_kwargs = (
        simple_parse_args_string(values) if isinstance(values, str) else values for values in (model_args, gen_kwargs)
    )
    name = str(model_args.get("checkpoint") or model_args.get("pretrained") or "instruct")
    allowed = {"until"} if family_of(name, model_args.get("revision")).stop_strings else set()
    if ignored := sorted(gen_kwargs.keys() - allowed):
        raise ValueError(f"gen_kwargs: {', '.join(ignored)} would not be used; decoding has its settings from "
                         "--model_args, such as gen_length=256,temperature=0.5"
                         + ("; only until is taken from --gen_kwargs" if allowed else ""))


def main() -> int:
    """lm-eval's command line; an argument that cannot be used ends it with one line and status 2."""
    from lm_eval.__main__ import cli_evaluate

    lm_eval.simple_evaluate = evaluate
    use_utf8()
    try:
        cli_evaluate()
    except ValueError as error:
        if processes.current().rank > 0:  # the first process usually says the same, and then this one is ended
            time.sleep(PATIENCE)
        say("lm_eval_cli", error)
        return 2
    finally:
        processes.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
