"""Dream under lm-eval's own command line, as the model `dpad_dream`; this module registers it and hands over:

    python -m dream.eval --model dpad_dream --tasks arithmetic-50 --include_path dataset/tasks --apply_chat_template \
        --fewshot_as_multiturn False --model_args checkpoint=dream-tiny,gen_length=256,dropout_strategy=gaussian

(lm-eval 0.4.13 finds models only in modules that were imported, so `lm_eval --model dpad_dream` alone does not know the
name.) All of lm-eval's flags work; run.py is the shorter way and keeps a journal by default.
"""

from __future__ import annotations

import sys

from lm_eval.api.registry import register_model

from dpad.evaluation.lm_eval_cli import CommandLineLM, main


@register_model("dpad_dream")
class DreamEval(CommandLineLM):
    """Dream for lm-eval; arguments: see `lm_eval_models.CommandLineLM`."""

    family = "dream"
    default = "dream-instruct"


if __name__ == "__main__":
    sys.exit(main("dream.eval"))
