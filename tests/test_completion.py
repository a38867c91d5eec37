"""Completions: what an answer's text is, and what it is charged.

    python -m pytest tests/test_completion.py
"""

import json
import shutil
import time

import pytest
import torch

from dpad import ROOT
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


def ids_of(loaded, text):
    return loaded.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_cut_counts_tokens_of_the_kept_text(loaded):
    """Tokens after the stop string and EOS do not count as an answer; the raw text shows what was there."""
    answer, eos = loaded.answer_text, loaded.model.config.eos_token_id
    ids = ids_of(loaded, "#### 12\nQuestion: what")
    kept = ids_of(loaded, "#### 12\n")
    assert answer.cut([*ids, eos, eos], ["Question:", "Answer:"]) == ("#### 12\n", len(kept))
    assert answer.raw([*ids, eos, eos]) == "#### 12\nQuestion: what"
    assert answer.cut([eos] * 4) == answer.cut([eos] * 4, after_eos="keep") == ("", 0)


@pytest.mark.parametrize("name", ["tiny", "dream-tiny"])
@pytest.mark.parametrize("turn", [False, True], ids=["EOS", "end of turn"])
def test_where_an_answer_ends(name, turn):
    """At the first EOS or end-of-turn token; the authors' convention leaves that token out and keeps what follows."""
    loaded = loading.load(name, device="cpu")
    eos = loaded.model.config.eos_token_id
    end = loaded.tokenizer.convert_tokens_to_ids("<|eot_id|>" if name == "tiny" else "<|im_end|>") if turn else eos
    kept, rest = ids_of(loaded, "#### 14"), ids_of(loaded, "14==")
    ids = [*kept, end, *rest, eos, eos]
    assert loaded.answer_text.cut(ids) == ("#### 14", len(kept))
    text, tokens = loaded.answer_text.cut(ids, after_eos="keep")
    assert text == "#### 1414==" and tokens == len(kept) + len(rest)
    assert loaded.answer_text.decode(ids) == loaded.decode(torch.tensor([ids]))[0] == "#### 14"
    assert loaded.answer_text.cut([*ids_of(loaded, "Question: no"), *ids], ["Question:"]) == ("", 0)
    assert loaded.answer_text.raw(ids).endswith("14==")


def test_special_tokens_that_are_only_added_tokens_are_hidden(tmp_path):
    """As in the hub's files, where no list of special tokens names the turn markers or the mask."""
    for name, markers in (("llada-tiny", ("<|eot_id|>", "<|start_header_id|>")), ("dream-tiny", ("<|im_end|>",))):
        folder = shutil.copytree(ROOT / "checkpoints" / name, tmp_path / name)
        file = folder / "tokenizer_config.json"
        settings = json.loads(file.read_text())
        del settings["extra_special_tokens"], settings["mask_token"]
        file.write_text(json.dumps(settings))
        loaded = loading.load(str(folder), device="cpu")
        start, mask = ids_of(loaded, markers[-1]), loaded.model.config.mask_token_id
        end = loaded.tokenizer.convert_tokens_to_ids(markers[0])
        ids = [*ids_of(loaded, "#### 14"), *(start if len(markers) > 1 else []), mask, end, *ids_of(loaded, "==")]
        assert loaded.answer_text.decode(ids) == loaded.answer_text.cut(ids)[0] == "#### 14"
        assert loaded.answer_text.decode_draft(ids) == "#### 14░"


def test_texts_that_only_look_like_an_end_of_turn_stay(loaded):
    """A tokenizer without such a token spells it; that is text."""
    assert "<|im_end|>" not in loaded.tokenizer.get_added_vocab()
    assert loaded.answer_text.cut(ids_of(loaded, "a <|im_end|> b"))[0] == "a <|im_end|> b"
