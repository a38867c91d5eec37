"""The recordings of the reference implementation: every token, forward, kept position and decision must be equal.

    bash tests/run.sh tests/test_golden.py

tests/golden/*/cases.json holds what the authors' published code did on the CPU in float32 with small random weights.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llada.generate import generate
from sampler import GaussianSampler, UniformSampler

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "llada-mha" / "cases.json").read_text())


def sampler_of(case):
    """The sampler that a recording names, or None for the whole suffix."""
    if case["dropout"] == "gaussian":
        return GaussianSampler(case["window"], case["k_sigma"], case["scale"])
    if case["dropout"] == "uniform":
        return UniformSampler(case["window"], case["number"])
    return None


@torch.no_grad()
def test_logits_at_contiguous_and_at_given_positions(random_llada):
    """Guards the forward pass: a wrong RoPE, norm or layer order shows here first."""
    recorded = load_file(GOLDEN / "llada-mha" / "logits.safetensors")
    ids = recorded["input_ids"]
    torch.testing.assert_close(random_llada(ids).logits, recorded["logits"], atol=1e-4, rtol=1e-4)
    placed = random_llada(ids, position_ids=recorded["position_ids"]).logits
    torch.testing.assert_close(placed, recorded["logits_at_position_ids"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_recording(random_llada, case):
    """Guards the whole decoding: schedules, thresholds, caches, samplers, early termination."""
    output = generate(
        random_llada, torch.tensor([case["prompt"]]), gen_length=case["gen_length"], block_length=case["block_length"],
        steps=case["steps"], threshold=case["threshold"], factor=case["factor"], cache=case["cache"],
        suffix_sampler=sampler_of(case), early_termination=case["early_termination"], seed=case["seed"],
        mask_id=case["mask_id"], eos_id=case["eos_id"],
    )
    assert output.sequences[0].tolist() == case["output"]
    assert output.decided_at[0].tolist() == case["decided_at"]
    assert output.forwards.tolist() == [case["forwards"]]
    assert output.tokens_processed == sum(case["tokens_per_forward"])
    if case["kept_suffix"] is not None:
        assert output.kept_suffix == case["kept_suffix"]
