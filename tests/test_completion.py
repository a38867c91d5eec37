"""Completions: what an answer's text is, and what it is charged.

    python -m pytest tests/test_completion.py
"""

import time

import pytest

from dpad.engine import completion, loading
from llada.settings import LLaDASettings

SHORT = LLaDASettings(gen_length=32, block_length=16, threshold=0.02)


@pytest.fixture(scope="module")
def loaded(checkpoint_folder):
    return loading.load(str(checkpoint_folder), device="cpu", dtype="float32")


def test_batch_shares_its_cost(loaded, monkeypatch):
    """What the rows of a batch are charged adds up to what the batch cost, in slots and in seconds."""
    outputs = []
    original = loading.LoadedModel.generate

    def generate(self, *args, **options):
        outputs.append(original(self, *args, **options))
        outputs[0].tokens_processed |= 1  # odd: two rows cannot share it evenly
        return outputs[0]

    monkeypatch.setattr(loading.LoadedModel, "generate", generate)
    start = time.perf_counter()
    rows = completion.complete(loaded, ["How many?", "How old is Zoe?"], SHORT)
    assert sum(row.tokens_processed for row in rows) == outputs[0].tokens_processed
    assert [row.forwards for row in rows] == outputs[0].forwards.tolist()
    assert rows[0].seconds == rows[1].seconds > 0 and 2 * rows[0].seconds < time.perf_counter() - start


def test_cut_counts_tokens_of_the_kept_text(loaded):
    """Tokens after the stop string and EOS do not count as an answer; the raw text shows what was there."""
    tokenizer, eos = loaded.tokenizer, loaded.model.config.eos_token_id
    ids = tokenizer("#### 12\nQuestion: what", add_special_tokens=False)["input_ids"]
    kept = tokenizer("#### 12\n", add_special_tokens=False)["input_ids"]
    text, raw, tokens = completion.cut(tokenizer, [*ids, eos, eos], eos, ["Question:", "Answer:"])
    assert (text, raw, tokens) == ("#### 12\n", "#### 12\nQuestion: what", len(kept))
    assert completion.cut(tokenizer, [eos] * 4, eos, []) == ("", "", 0)
    inside = [*kept, eos, *kept]
    assert completion.cut(tokenizer, inside, eos, [])[2] == 2 * len(kept)
    assert completion.cut(tokenizer, inside, eos, [tokenizer.eos_token])[0] == "#### 12\n"
