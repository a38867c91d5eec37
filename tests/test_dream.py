"""Dream's own rules: shifted prediction, entropy schedule, sampling, opening step; batch = alone; the tokenizer.

    bash tests/run.sh tests/test_dream.py
"""

import json
import math

import pytest
import torch
from helpers import SAMPLERS, left_padded, name_of, prompts_of
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from checkpoints import make
from dpad.engine.settings import CACHE_MODES, TokenIds
from dream import DreamConfig, DreamModel, DreamTokenizer
from dream.generate import DreamRule, DreamSettings, generate, keep_top

SCHEDULES = [{"steps": 24}, {"threshold": 0.05}, {"steps": 24, "temperature": 0.8, "top_p": 0.9},
             {"steps": 24, "alg_temp": 0.5}, {"steps": 6}]
IDS = TokenIds(mask=510, eos=509)


@pytest.mark.parametrize("cache", CACHE_MODES)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=name_of)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
def test_a_batch_gives_each_row_what_it_gets_alone(random_dream, cache, sampler, schedule):
    """Guards the shift across padding and the opening step, which decodes a block's first position in every row."""
    prompts = prompts_of([3, 17, 8, 30, 1, 17])
    ids, mask = left_padded(prompts)
    options = {"gen_length": 96, "block_length": 16, "cache": cache, "suffix_sampler": sampler, "seed": 5,
               "early_termination": True, "eos_id": 77, "steps": 6} | schedule
    together = generate(random_dream, ids, attention_mask=mask, **options)
    for row, prompt in enumerate(prompts):
        alone = generate(random_dream, prompt[None], **options)
        assert torch.equal(together.sequences[row, ids.shape[1] - len(prompt):], alone.sequences[0])
        assert torch.equal(together.decided_at[row], alone.decided_at[0])
        assert together.forwards[row] == alone.forwards[0]


def rule_of(tokens=IDS, **changes):
    return DreamRule(DreamSettings(**({"gen_length": 64, "block_length": 16} | changes)), tokens)


@pytest.mark.parametrize("cache", CACHE_MODES)
@pytest.mark.parametrize("steps_per_block", [1, 2, 3, 8, 16])
def test_the_fixed_schedule_decodes_every_mask(cache, steps_per_block):
    """Guards the time grid: quotas by hand for s = 3, all masks by the last step, one position at a cached opening."""
    rule = rule_of(steps=4 * steps_per_block, cache=cache)
    left, quotas = 16, []
    while left:
        quotas.append(rule.quota(len(quotas), left))
        left -= quotas[-1]
    opening = [1] if cache != "none" else []
    assert quotas[: len(opening)] == opening
    assert len(quotas) - len(opening) == max(1, steps_per_block - 1)
    if steps_per_block == 3:
        times = [1 + (1e-3 - 1) * i / 3 for i in range(4)]
        first = int((16 - len(opening)) * (1 - times[2] / times[1]))
        assert quotas[len(opening):] == [first, 16 - len(opening) - first]


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_the_opening_forward_decodes_the_first_position_alone(random_dream, cache):
    """Guards the position whose prediction stands before the block, where no later step computes."""
    for schedule in ({"steps": 32}, {"threshold": 0.05}):
        output = generate(random_dream, torch.stack(prompts_of([9])), gen_length=64, block_length=16, cache=cache,
                          **({"steps": 4} | schedule))
        for block in output.decided_at[0].view(4, 16):
            assert block[0] == block.min() and (block == block.min()).sum() == 1


@pytest.mark.parametrize("top_p, top_k, kept", [
    (None, None, 5), (0.6, None, 2), (0.49, None, 1), (1.0, None, 5), (None, 3, 3), (0.6, 1, 1), (1e-9, None, 1),
    (None, 99, 5),
])
def test_filters_keep_the_likeliest(top_p, top_k, kept):
    """Guards top_p and top_k on probabilities 0.5, 0.3, 0.1, 0.06, 0.04."""
    logits = torch.tensor([[0.06, 0.5, 0.04, 0.3, 0.1]], dtype=torch.float64).log()
    left = keep_top(logits, top_p, top_k).isfinite()[0]
    assert left.sum() == kept
    assert set(left.nonzero().flatten().tolist()) == set(logits[0].argsort(descending=True)[:kept].tolist())


def test_sampled_tokens_follow_the_filtered_softmax(random_dream):
    """Guards temperature with top_p: frequencies of many draws against the renormalised probabilities."""
    draws = 4000
    logits = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04]).log()
    rule = rule_of(TokenIds(mask=4, eos=3), gen_length=draws, block_length=draws, temperature=0.5, top_p=0.95)
    tokens, _ = rule.candidates(logits.expand(draws, -1), torch.arange(draws), 0, torch.Generator().manual_seed(0))
    sharpened = torch.tensor([0.25, 0.09, 0.01, 0.0036, 0.0016]) / 0.3552  # squared, as 1/T = 2
    kept = torch.where(torch.tensor([True, True, False, False, False]), sharpened, 0)
    kept /= kept.sum()
    frequency = torch.bincount(tokens, minlength=5) / draws
    assert ((frequency - kept).abs() <= 5 * (kept * (1 - kept) / draws).sqrt() + 1e-9).all()


def test_alg_temp_draws_positions_from_the_softmax_of_their_confidence():
    """Guards the draw: with one position to take, its frequency is softmax(confidence / alg_temp)."""
    rule = rule_of(alg_temp=0.7)
    confidence = torch.tensor([[-0.2, -1.0, -2.5, -math.inf]], dtype=torch.float64)
    counts, source = torch.zeros(4), torch.Generator().manual_seed(1)
    for _ in range(3000):
        counts += rule.choose(confidence, 1, source)[0]
    expected = (confidence[0] / 0.7).softmax(-1)
    assert ((counts / 3000 - expected).abs() <= 5 * (expected * (1 - expected) / 3000).sqrt() + 1e-9).all()


def test_the_mask_is_never_emitted(random_dream):
    """Guards a model whose likeliest token is the mask, also when the filters leave nothing else."""
    ids = torch.stack(prompts_of([9]))
    answer = generate(random_dream, ids, gen_length=32, block_length=16, steps=2).sequences[0, 9:]
    favourite = answer.mode().values.item()
    for extra in ({}, {"top_k": 1}, {"temperature": 1.0, "top_p": 0.01}):
        output = generate(random_dream, ids, gen_length=32, block_length=16, mask_id=favourite, **extra)
        assert not (output.sequences[0, 9:] == favourite).any()


@pytest.mark.parametrize("options, words", [
    ({"top_p": 0.0}, "top_p is 0.0"), ({"top_p": 1.5}, "top_p is 1.5"), ({"top_k": 0}, "top_k is 0"),
    ({"alg_temp": -1}, "alg_temp is -1"), ({"threshold": 2}, "threshold is 2"),
    ({"threshold": 0.9, "alg_temp": 1.0}, "alg_temp is 1.0"), ({"temperature": -0.1}, "temperature is -0.1"),
])
def test_bad_arguments_name_themselves(random_dream, options, words):
    with pytest.raises(ValueError, match=f"^{words}.*(must|give)"):
        generate(random_dream, torch.stack(prompts_of([9])), gen_length=32, block_length=16, **options)


# --- Configuration and tokenizer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("field, value", [
    ("hidden_act", "gelu"), ("use_sliding_window", True), ("num_key_value_heads", 3), ("num_attention_heads", 5),
    ("vocab_size", 0),
])
def test_a_configuration_that_is_not_implemented_is_refused(field, value):
    with pytest.raises(ValueError, match=f"config field {field} is"):
        DreamConfig(**({"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2} | {field: value}))


def test_saved_shards_read_back(random_dream, tmp_path):
    """Guards the hub's layout: weight names, shards, index."""
    random_dream.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    again = DreamModel.from_pretrained(tmp_path)
    for (name, weight), (_, original) in zip(again.state_dict().items(), random_dream.state_dict().items()):
        assert torch.equal(weight, original), name


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """A folder with vocab.json and merges.txt as the hub has them, from the embedded model's recipe."""
    folder = tmp_path_factory.mktemp("tokenizer")
    model, tokenizer = make.make_model("dream", seed=7)
    make.save_tokenizer(tokenizer, folder)
    model.config.save_pretrained(folder)
    return folder


TEXTS = ["Hello world", " Mia buys 3*4=<<3*4=12>>12 marbles.\n#### 12", "naïve café ½ 中文 🙂", "a\r\n\r\n  b\tc ", "",
         "def f(x):\n    return x\n", "they're 100% sure… I'LL go"]


def test_encodes_as_qwen2_does(tokenizer_folder):
    """Guards ids against transformers' Qwen2 tokenizer over the same files, where the two must agree."""
    ours = DreamTokenizer.from_pretrained(tokenizer_folder)
    vocabulary = json.loads((tokenizer_folder / "vocab.json").read_text())
    _version, *merges = (tokenizer_folder / "merges.txt").read_text().splitlines()
    theirs = Qwen2Tokenizer(vocab=vocabulary, merges=[tuple(line.split(" ")) for line in merges])
    theirs.add_tokens([token for token in ours.added_tokens_decoder.values() if not token.special])
    for text in TEXTS:
        assert ours.convert_ids_to_tokens(ours(text).input_ids) == theirs.convert_ids_to_tokens(theirs(text).input_ids)
        assert ours.decode(ours(text).input_ids) == text


def test_a_saved_tokenizer_reads_back(tokenizer_folder):
    """Guards the numbers that vocab.json can not hold: after saving and loading every token has its id again."""
    _, made = make.make_model("dream", seed=7)
    assert DreamTokenizer.from_pretrained(tokenizer_folder).get_vocab() == made.get_vocab()


def test_special_tokens_are_special(tokenizer_folder):
    """Guards the difference on purpose: turn markers are single ids that `skip_special_tokens` leaves out."""
    tokenizer = DreamTokenizer.from_pretrained(tokenizer_folder)
    ids = tokenizer("<|im_start|>user\nhi<|im_end|><|endoftext|><|mask|><|beginoftext|>").input_ids
    markers = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|mask|>", "<|beginoftext|>")
    assert all(ids.count(tokenizer.convert_tokens_to_ids(marker)) == 1 for marker in markers)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\nhi"
    assert tokenizer.decode([*tokenizer("hi").input_ids, len(tokenizer) + 1]) == "hi"
    assert tokenizer.chat_template is not None
