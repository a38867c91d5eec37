"""What an answer and its cost depend on besides the settings: the checkpoint's files, and the code that answers.

    python -m dpad.evaluation.identity                 # prints the version of the code, a hash of its source files

Used by runs.py and compare.py; standard library only, so that a comparison that is complete is shown at once.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from dpad import ROOT

# The code that an answer and its cost depend on. Changes elsewhere leave old answers usable.
ANSWERING_CODE = ("sampler.py", "dpad/engine/*.py", "llada/*.py", "dream/*.py")
CHECKPOINT_FILES = (".safetensors", ".json", ".jinja", ".txt", ".model")
SAMPLED = 2**26  # bytes; larger files are sampled: the header of a file of weights, and SAMPLES pieces of them
SAMPLES = 256
SAMPLE = 2**14


def fingerprint(checkpoint: str, commit: str | None = None) -> list[Any]:
    """What identifies a checkpoint: the hub's commit; or of a folder's files the names, sizes and content, but neither
    their times nor where the folder is."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return [checkpoint, commit]
    paths = sorted(
        path for path in folder.iterdir()
        if path.suffix in CHECKPOINT_FILES and path.name != "records.json" and path.is_file()
    )
    return [[path.name, path.stat().st_size, sample_hash(path)] for path in paths]


def sample_hash(path: Path) -> str:
    """A hash of a file's content: of all of it up to SAMPLED bytes, of a larger one of its beginning, its end and
    SAMPLES places between, which are enough to notice weights that were trained further."""
    size = path.stat().st_size
    content = hashlib.sha256()
    with open(path, "rb") as file:
        if size <= SAMPLED:
            content.update(file.read())
        else:
            for number in range(SAMPLES + 1):
                file.seek((size - SAMPLE) * number // SAMPLES)
                content.update(file.read(SAMPLE))
    return content.hexdigest()[:16]


def code_version() -> str:
    """A hash of the source files that an answer and its cost depend on."""
    files = sorted({path for pattern in ANSWERING_CODE for path in ROOT.glob(pattern)})
    content = b"".join(str(path.relative_to(ROOT)).encode() + path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()[:16]


if __name__ == "__main__":
    print(code_version())
