"""transformers' Auto classes find both families after one import of ours, whichever comes first, and none waits for it.

    bash tests/run.sh tests/test_auto_classes.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

import dream
import llada

PROGRAM = """
for ours in ("import {package}", "from transformers import AutoModelForCausalLM, AutoTokenizer, AutoConfig")[::{order}]:
    exec(ours)
for name in ("dream-tiny", "llada-tiny"):
    folder = "checkpoints/" + name
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    config = AutoConfig.from_pretrained(folder)
    print(type(model).__name__, type(config).__name__, type(AutoTokenizer.from_pretrained(folder)).__name__)
"""


def python(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, -1], ids=["ours first", "transformers first"])
@pytest.mark.parametrize("package", ["dream", "llada", "dpad"])
def test_one_import_is_enough(package, order):
    """Guards a user's script: `import dream`, then AutoModelForCausalLM; nothing of ours is named besides."""
    dream_line, llada_line = python(PROGRAM.format(package=package, order=order))
    assert dream_line == "DreamModel DreamConfig DreamTokenizer"
    assert llada_line.startswith("LLaDAModelLM LLaDAConfig ")


def test_the_import_itself_takes_no_time():
    """Guards --help: the classes wait for transformers, and ours do not import it."""
    [line] = python("import dpad, llada, dream, sys; print('torch' in sys.modules, 'transformers' in sys.modules)")
    assert line == "False False"


@pytest.mark.parametrize("folder, config, model", [
    ("llada-mha", llada.LLaDAConfig, llada.LLaDAModelLM), ("dream-gqa", dream.DreamConfig, dream.DreamModel),
])
def test_every_auto_class_finds_it(folder, config, model):
    folder = ROOT / "tests" / "golden" / folder
    assert isinstance(AutoConfig.from_pretrained(folder), config)
    for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM):
        assert isinstance(auto_class.from_pretrained(folder), model)


def test_a_broken_folder_is_refused_by_auto_classes_too(tmp_path):
    """Guards that the strict loader is what they call."""
    (tmp_path / "config.json").write_bytes((ROOT / "tests" / "golden" / "dream-gqa" / "config.json").read_bytes())
    with pytest.raises(ValueError, match="it has no weights in model.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_other_files_are_refused_by_auto_classes_too(tmp_path):
    """Guards the fields by which transformers takes other weights: there the configuration is made before we see it."""
    folder = shutil.copytree(ROOT / "tests" / "golden" / "dream-gqa", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for value in ("adapter_model.bin", "../model.safetensors"):
        (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": value}))
        with pytest.raises(ValueError, match="config field transformers_weights is .*; it must be left out"):
            AutoModelForCausalLM.from_pretrained(folder)


def test_auto_tokenizer_finds_dreams():
    assert isinstance(AutoTokenizer.from_pretrained(ROOT / "checkpoints" / "dream-tiny"), dream.DreamTokenizer)


@pytest.mark.slow
def test_a_class_that_was_not_imported_yet():
    """Guards the stand-ins of the registry: called, or asked for something, they are the class of the models."""
    lines = python("""
import dpad, sys
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
config = AutoConfig.from_pretrained("checkpoints/llada-tiny")
stand_in = AutoModelForCausalLM._model_mapping[type(config)]
print("llada.modeling" in sys.modules, stand_in.__name__, stand_in.config_class is type(config))
print(type(stand_in(config)).__module__, stand_in.can_generate())
print(AutoModelForCausalLM._model_mapping[type(config)] is stand_in)
""")
    assert lines == ["False LLaDAModelLM True", "llada.modeling True", "False"]
