"""Fixtures of several test files: the recorded random models and a small checkpoint. (Functions: helpers.py.)"""

import os
from pathlib import Path

import pytest
import torch
from helpers import GOLDEN, ROOT
from hypothesis import settings
from transformers import AutoTokenizer

from dpad.evaluation import sandbox
from dream import DreamModel
from llada import LLaDAConfig, LLaDAModelLM


def pytest_configure() -> None:
    """One thread: small models are fastest so, and test processes side by side stay out of each other's way.

    hypothesis sets no deadline for an example: the time that one takes says more about the machine than about the code.

    Where a machine cannot isolate programs well, as in many containers, the tests run those of coding tasks anyway.
    """
    torch.set_num_threads(1)
    settings.register_profile("any machine", deadline=None)
    settings.load_profile("any machine")
    if sandbox.VARIABLE not in os.environ:  # test processes have it from the one that starts them
        is_isolated = sandbox.isolation().level != "none"
        os.environ[sandbox.VARIABLE] = "namespaces" if is_isolated else "none"
        sandbox.DEFAULT_LEVEL = os.environ[sandbox.VARIABLE]
        sandbox.require_level(None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test is `fast` unless it, or its file, is marked `slow`, `browser` or `gpu` (pyproject.toml describes them).

    So `-m fast` covers every file, and a test of several seconds must say that it is slow.
    """
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("slow", "browser", "gpu")):
            item.add_marker("fast")


@pytest.fixture(scope="session")
def random_llada() -> LLaDAModelLM:
    """The model of the recordings: three layers of random weights, vocabulary 512, mask 510, EOS 509."""
    return LLaDAModelLM.from_pretrained(GOLDEN / "llada-mha").eval()


@pytest.fixture(scope="session")
def random_dream() -> DreamModel:
    """Dream's recorded model: two key-value heads for four heads, otherwise as `random_llada`."""
    return DreamModel.from_pretrained(GOLDEN / "dream-gqa").eval()


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights that answers in milliseconds, with the tokenizer of the embedded model."""
    folder = tmp_path_factory.mktemp("checkpoint") / "random-llada"
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "checkpoints" / "llada-tiny")
    torch.manual_seed(0)
    LLaDAModelLM(LLaDAConfig(
        d_model=32, n_layers=2, n_heads=2, mlp_hidden_size=48, vocab_size=len(tokenizer), embedding_size=1024,
        max_sequence_length=1024, mask_token_id=tokenizer.mask_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, init_std=0.3,
    )).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
