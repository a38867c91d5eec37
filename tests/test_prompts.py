"""What can be asked: prompts that are empty or too long, and models that the hub does not give.

    bash tests/run.sh tests/test_prompts.py
"""

from __future__ import annotations

from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub import errors

from dpad.engine import loading
from dpad.engine.prompts import check_prompt, cut_prompt


@pytest.fixture(scope="module")
def loaded(checkpoint_folder) -> loading.LoadedModel:
    return loading.load(str(checkpoint_folder), device="cpu")


def test_prompts_that_cannot_be_answered_are_refused(loaded):
    """Guards the sentence that says why, before anything is decoded."""
    with pytest.raises(ValueError, match="the prompt is empty"):
        check_prompt(loaded, " \n", 32)
    with pytest.raises(ValueError, match="gen_length is 1024, but after a prompt of [0-9]+ tokens there is room for"):
        check_prompt(loaded, "Tom has 3 bags.", 1024)
    check_prompt(loaded, "Tom has 3 bags.", 32)


def test_a_long_prompt_keeps_its_end(loaded):
    """Guards --prompt_limit: the question stands at the end."""
    text = "Tom has 3 bags. Mia has 20 eggs."
    assert cut_prompt(loaded, text, 1000) == (text, 0)
    end, count = cut_prompt(loaded, text, 4)
    assert count > 0 and text.endswith(end)


@pytest.mark.parametrize("error, message", [
    (errors.RepositoryNotFoundError, "model 'owner/name' is not on the hub, or is not open to this account"),
    (errors.RevisionNotFoundError, "revision is 'v9'; model 'owner/name' has no such branch, tag or commit"),
    (errors.HfHubHTTPError, "the hub refuses model 'owner/name': too many requests"),
])
def test_what_the_hub_refuses_is_said(monkeypatch, error, message):
    """Guards against a guess: only a hub that does not answer leaves the local cache to try."""
    refusal = error("too many requests", response=Mock())
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", Mock(side_effect=refusal))
    with pytest.raises(ValueError, match=message):
        loading.load("owner/name", revision="v9")


@pytest.mark.parametrize("arguments, message", [
    ({"device": "abacus"}, "device is 'abacus'"), ({"dtype": "int8"}, "dtype is 'int8'; it must be one of float32"),
])
def test_where_and_how_a_model_computes_is_checked(checkpoint_folder, arguments, message):
    """Guards the sentence instead of torch's own errors."""
    with pytest.raises(ValueError, match=message):
        loading.load(str(checkpoint_folder), **arguments)
