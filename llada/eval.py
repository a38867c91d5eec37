"""LLaDA under lm-eval's own command line, as the model `dpad_llada`; this module registers it and hands over:

    python -m llada.eval --model dpad_llada --model_args checkpoint=tiny,gen_length=256,dropout_strategy=gaussian \
        --tasks arithmetic-50 --include_path dataset/tasks --apply_chat_template --fewshot_as_multiturn False

(lm-eval 0.4.13 finds models only in modules that were imported, so `lm_eval --model dpad_llada` alone does not know the
name.) All of lm-eval's flags work; run.py is the shorter way and keeps a journal by default.
"""

from __future__ import annotations

import sys

from lm_eval.api.registry import register_model

from dpad.evaluation.lm_eval_cli import CommandLineLM, main


@register_model("dpad_llada")
class LLaDAEval(CommandLineLM):
    """LLaDA for lm-eval; arguments: see `lm_eval_models.CommandLineLM`."""

    family = "llada"
    default = "instruct"


if __name__ == "__main__":
    sys.exit(main("llada.eval"))
