"""The recordings of the reference implementation: every token, forward, kept position and decision must be equal.

    bash tests/run.sh tests/test_golden.py

tests/golden/*/cases.json holds what the authors' published code did on the CPU in float32 with small random weights.
"""

import json

import pytest
import torch
from helpers import GOLDEN
from safetensors.torch import load_file

import dream.generate
import llada.generate
from dpad.engine import cuda_graphs, products
from sampler import GaussianSampler, UniformSampler

CASES = {name: json.loads((GOLDEN / name / "cases.json").read_text()) for name in ("llada-mha", "dream-gqa")}


@pytest.fixture(scope="module")
def models_by_name(random_llada, random_dream):
    return {"llada-mha": random_llada, "dream-gqa": random_dream}


def sampler_of(case):
    """The sampler that a recording names, or None for the whole suffix."""
    if case["dropout"] == "gaussian":
        return GaussianSampler(case["window"], case["k_sigma"], case["scale"])
    if case["dropout"] == "uniform":
        return UniformSampler(case["window"], case["number"])
    return None


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_logits_at_contiguous_and_at_given_positions(models_by_name, name):
    """Guards the forward pass: a wrong RoPE, norm or layer order shows here first."""
    model, recorded = models_by_name[name], load_file(GOLDEN / name / "logits.safetensors")
    ids = recorded["input_ids"]
    torch.testing.assert_close(model(ids).logits, recorded["logits"], atol=1e-4, rtol=1e-4)
    placed = model(ids, position_ids=recorded["position_ids"]).logits
    torch.testing.assert_close(placed, recorded["logits_at_position_ids"], atol=1e-4, rtol=1e-4)


def runs_of(name):
    """Every recording as it is, over the padded steps of cuda_graphs.py, and with all products by oneDNN."""
    plain = [pytest.param(case, "off", "off", id=case["id"]) for case in CASES[name]]
    others = [
        pytest.param(case, *modes, id=f"{case['id']}-{words}", marks=[] if number % 4 == 0 else pytest.mark.slow)
        for number, case in enumerate(CASES[name])
        for words, *modes in (("padded", "on", "off"), ("onednn", "off", "on"))
    ]
    return plain + others


def settings_of(case):
    """The arguments that a recording and both generate calls share."""
    names = ("gen_length", "block_length", "steps", "threshold", "cache", "early_termination", "seed", "mask_id",
             "eos_id")
    return {name: case[name] for name in names} | {"suffix_sampler": sampler_of(case)}


@pytest.mark.parametrize("case, graphs, library", runs_of("llada-mha"))
def test_llada_recording(random_llada, case, graphs, library):
    """Guards the whole decoding: schedules, thresholds, caches, samplers, early termination."""
    with cuda_graphs.use(graphs), products.use(library):
        output = llada.generate.generate(
            random_llada, torch.tensor([case["prompt"]]), factor=case["factor"], **settings_of(case)
        )
    assert output.sequences[0].tolist() == case["output"]
    assert output.decided_at[0].tolist() == case["decided_at"]
    assert output.forwards.tolist() == [case["forwards"]]
    assert output.tokens_processed == sum(case["tokens_per_forward"])
    if case["kept_suffix"] is not None:
        assert output.kept_suffix == case["kept_suffix"]


@pytest.mark.parametrize("case, graphs, library", runs_of("dream-gqa"))
def test_dream_recording(random_dream, case, graphs, library):
    """Guards the same for Dream, where a step of the fixed schedule that decodes nothing takes no forward here.

    So forwards may be fewer than recorded; then the decisions keep their order, but not their numbers.
    """
    with cuda_graphs.use(graphs), products.use(library):
        output = dream.generate.generate(random_dream, torch.tensor([case["prompt"]]), **settings_of(case))
    assert output.sequences[0].tolist() == case["output"]
    if case["kept_suffix"] is not None:
        assert output.kept_suffix == case["kept_suffix"]
    recorded, used = case["decided_at"], sorted({number for number in case["decided_at"] if number >= 0})
    assert output.decided_at[0].tolist() == [number if number < 0 else used.index(number) for number in recorded]
    assert output.forwards.item() == len(used)
    assert output.tokens_processed == sum(case["tokens_per_forward"][number] for number in used)
    if case["threshold"] is not None:
        assert output.forwards.item() == case["forwards"]
