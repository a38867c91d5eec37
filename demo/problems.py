"""Documents of the task gsm8k-split for lm-eval: the GSM8K problems that dataset/gsm8k.py fetched.

Named by gsm8k-split.yaml beside it, never run. To see the task at work:

    python dataset/gsm8k.py && MODEL=1.5 TASK=gsm8k-split bash demo/demo.sh
"""

import sys
from pathlib import Path

from datasets import Dataset

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # lm-eval loads this file by its path, whatever the working directory
    sys.path.append(str(ROOT))

from dataset import gsm8k  # noqa: E402


def load(**metadata) -> dict:
    """The documents (`question`, `answer`, `ans`) as the split "test". metadata: whatever lm-eval passes on; unused.

    Raises:
        ValueError: dataset/gsm8k-50.arrow is missing or unreadable; the message names the command that makes it.
    """
    return {"test": Dataset.from_list(gsm8k.read())}
