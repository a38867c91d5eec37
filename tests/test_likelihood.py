"""Log-likelihoods: the estimate against exact enumeration on a toy, its laws, and multiple choice end to end.

    python -m pytest tests/test_likelihood.py
"""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpad.engine import loading
from dpad.engine.likelihood import SCHEMES, draw_masks, greedy_tokens, log_likelihood, predictions
from dpad.evaluation.runs import evaluate
from llada.generate import generate
from llada.settings import LLaDASettings

PROMPT = torch.tensor([3, 141, 59, 26])
MASK = 510


def exact(model, prompt, target):
    """The bound itself: every set of masked tokens, weighted as in LLaDA's equation 6 (both schemes estimate it)."""
    total = 0.0
    for size in range(1, len(target) + 1):
        for chosen in itertools.combinations(range(len(target)), size):
            shown, places = target.clone(), torch.tensor(chosen)
            shown[places] = MASK
            logits = predictions(model, torch.cat((prompt, shown))[None], torch.zeros_like(places),
                                 len(prompt) + places)
            right = logits.double().log_softmax(-1)[range(size), target[places]].sum().item()
            total += right / size / math.comb(len(target), size)
    return total


@pytest.mark.parametrize("family", ["random_llada", "random_dream"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_estimate_is_of_the_exact_value(family, scheme, request):
    """Guards weights and shift: over many masks the mean comes close to the sum over all sets of masked tokens."""
    model = request.getfixturevalue(family)
    target = torch.tensor([7, 300, 41])
    with torch.inference_mode():
        wanted = exact(model, PROMPT, target)
    found = log_likelihood(model, PROMPT, target, mask_id=MASK, scheme=scheme, samples=3000, batch_size=500)
    assert found == pytest.approx(wanted, rel=0.05)


def test_one_token_has_an_exact_likelihood(random_llada):
    """Guards the simplest case: with one token there is one mask, so the estimate is log p itself."""
    with torch.inference_mode():
        logits = predictions(random_llada, torch.cat((PROMPT, torch.tensor([MASK])))[None], torch.tensor([0]),
                             torch.tensor([4]))
    wanted = logits.double().log_softmax(-1)[0, 9].item()
    found = log_likelihood(random_llada, PROMPT, torch.tensor([9]), mask_id=MASK, scheme="counts", samples=3)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_seed_and_batch_size(random_llada):
    """The seed alone decides the estimate; how many masks share a forward does not."""
    target = torch.tensor([5, 6, 7, 8])
    options = {"mask_id": MASK, "scheme": "counts", "samples": 24}
    first = log_likelihood(random_llada, PROMPT, target, batch_size=24, seed=1, **options)
    assert log_likelihood(random_llada, PROMPT, target, batch_size=5, seed=1, **options) == pytest.approx(first)
    assert log_likelihood(random_llada, PROMPT, target, batch_size=24, seed=2, **options) != first


@given(samples=st.integers(1, 40), length=st.integers(1, 20), seed=st.integers(0, 99))
def test_counts_mask_as_many_as_they_weigh(samples, length, seed):
    """In "counts" each sample masks T / weight tokens, at least one, and the counts are spread evenly."""
    masks, weights = draw_masks(samples, length, "counts", torch.Generator().manual_seed(seed))
    counts = masks.sum(-1)
    assert masks.shape == (samples, length) and (counts >= 1).all()
    assert torch.allclose(counts * weights, torch.tensor(float(length)))
    times = torch.bincount(counts, minlength=length + 1)[1:]
    assert times.max() - times.min() <= 1 or samples < length


def test_greedy_is_what_decoding_writes(random_llada):
    """Guards `greedy_tokens`: what generate decodes, one token a forward, is greedy; with another token it is not."""
    output = generate(random_llada, PROMPT[None], gen_length=6, block_length=6)
    target = output.sequences[0, len(PROMPT):]
    assert greedy_tokens(random_llada, PROMPT, target, mask_id=MASK) == len(target)
    other = target.clone()
    other[3] = (other[3] + 1) % 500
    assert greedy_tokens(random_llada, PROMPT, other, mask_id=MASK) < len(target)


@pytest.mark.parametrize("change, message", [
    ({"samples": 0}, "samples is 0"), ({"batch_size": 0}, "batch_size is 0"), ({"scheme": "all"}, "scheme is 'all'"),
    ({"target": torch.tensor([], dtype=torch.long)}, "target is empty"),
])
def test_bad_values(random_llada, change, message):
    arguments = {"target": torch.tensor([5]), "mask_id": MASK, "scheme": "counts"} | change
    with pytest.raises(ValueError, match=message):
        log_likelihood(random_llada, PROMPT, **arguments)


def test_multiple_choice_task(checkpoint_folder, tmp_path):
    """A task that asks for log-likelihoods runs whole, resumes, and counts documents as samples."""
    loaded = loading.load(str(checkpoint_folder), device="cpu", dtype="float32")
    options = {"limit": 3, "output": tmp_path, "mc_samples": 4, "batch_size": 4, "progress": False}
    record = evaluate(loaded, "choices-local", LLaDASettings(), **options)
    assert record["metrics"].keys() == {"acc", "acc_norm"} and record["samples"] == 3
    lines = (tmp_path / record["folder"] / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 9
    again = evaluate(loaded, "choices-local", LLaDASettings(), **options)
    assert again["reused"] == 9 and again["metrics"] == record["metrics"]
