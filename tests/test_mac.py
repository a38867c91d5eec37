"""Devices without float64: the same decisions as on the CPU, with a stand-in for a Mac's GPU (mac.py).

    bash tests/run.sh tests/test_mac.py

No Mac was at hand: that Apple's framework has every other operator is not tested here.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import left_padded, name_of, prompts_of
from mac import DEVICE, Mac, MacTensor, on_mac

from dpad.engine import completion, likelihood, loading, selection
from dpad.engine.decoding import decode
from dpad.engine.rules import RULES
from dpad.engine.settings import TokenIds
from dpad.engine.soft import SoftSuffix
from dpad.interact import attention
from sampler import SAMPLERS, GaussianSampler

SCORED = {"suffix_sampler": SAMPLERS["attention"](window=4, top_k=8)}
SETTINGS = [
    {"steps": 8}, {"threshold": 0.2}, {"threshold": 0.2, "cache": "prefix"}, {"steps": 8, "cache": "dual"},
    {"temperature": 0.7, "steps": 8}, {"alg": "entropy", "steps": 8}, {"alg": "topk_margin", "threshold": 0.1},
    {"alg": "origin", "steps": 8}, {"early_termination": True, "threshold": 0.1},
    {"suffix_sampler": GaussianSampler(16, 3, 1.6), "threshold": 0.2, "cache": "prefix"}, SCORED | {"cache": "dual"},
    {"soft_suffix": SoftSuffix(), "cache": "dual", "threshold": 0.2},
    {"soft_suffix": SoftSuffix(), "suffix_sampler": GaussianSampler(16, 3, 1.6), "cache": "prefix"},
    *({"rule": rule()} for rule in RULES.values()), {"rule": RULES["klass"](), "cache": "prefix"},
]
LLADA = [{"remasking": "random", "steps": 8}, {"factor": 1.0}, {"suppress_eos": "last", "steps": 8},
         {"suppress_eos": "never", "threshold": 0.2}]
DREAM = [{"top_p": 0.9, "temperature": 0.5}, {"top_k": 5, "temperature": 0.5}, {"alg_temp": 0.3}]


@pytest.fixture(autouse=True)
def without_float64(monkeypatch):
    monkeypatch.setattr(selection, "WITHOUT_FLOAT64", ("mps", DEVICE.type))


@pytest.fixture(scope="module")
def models(random_llada, random_dream):
    """Each recorded model, and its copy on the stand-in."""
    return {"llada": (random_llada, on_mac(random_llada)), "dream": (random_dream, on_mac(random_dream))}


def answers(model, family, settings):
    """What decoding a padded batch of two gives: all of its output, on the CPU."""
    ids, mask = left_padded(prompts_of([9, 5]))
    rule = family.rule(family.settings(gen_length=32, block_length=16, **settings), TokenIds.of(model))
    output = decode(model, rule, ids.to(model.device), mask.to(model.device))
    return [field.cpu() if isinstance(field, torch.Tensor) else field for field in dataclasses.astuple(output)]


@pytest.mark.parametrize("family, settings", [
    *(("llada", settings) for settings in SETTINGS + LLADA), *(("dream", settings) for settings in SETTINGS + DREAM),
], ids=name_of)
def test_the_same_decisions(models, family, settings):
    """Guards every way of decoding: no float64 on the device, no operator that it lacks, and the CPU's tokens."""
    here, there = models[family]
    expected = answers(here, loading.FAMILIES[family], settings)
    with Mac():
        assert there.device.type == DEVICE.type
        found = answers(there, loading.FAMILIES[family], settings)
    for one, other in zip(found, expected):
        assert torch.equal(one, other) if isinstance(other, torch.Tensor) else one == other


def test_the_stand_in_refuses_what_a_mac_refuses(models, monkeypatch):
    """Guards this file: without the way around float64, decoding ends in an error."""
    monkeypatch.setattr(selection, "WITHOUT_FLOAT64", ())
    with Mac(), pytest.raises((TypeError, NotImplementedError)):
        answers(models["llada"][1], loading.FAMILIES["llada"], {"threshold": 0.2})
    with Mac():
        numbers = torch.zeros(2, device=DEVICE)
        assert isinstance(numbers + 1, MacTensor)
        with pytest.raises(TypeError, match="float64"):
            numbers.double()
        with pytest.raises(RuntimeError, match="same device"):
            numbers + torch.ones(2)
        with pytest.raises(NotImplementedError, match="nonzero_static"):
            numbers.nonzero_static(size=2)


def test_nothing_changes_elsewhere():
    """Guards the plain path: on a CPU and with CUDA the deciding device is the device."""
    for name in ("cpu", "cuda:1"):
        assert selection.deciding_device(torch.device(name)) == torch.device(name)
    assert selection.deciding_device(torch.device("mps")) == torch.device("cpu")


@pytest.mark.parametrize("scheme", likelihood.SCHEMES)
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_likelihoods(models, family, scheme):
    """Guards multiple-choice tasks."""
    here, there = models[family]
    prompt, target = prompts_of([6, 7])
    arguments = {"mask_id": here.config.mask_token_id}

    def both(model):
        estimate = likelihood.log_likelihood(model, prompt, target, scheme=scheme, samples=4, **arguments)
        return estimate, likelihood.greedy_tokens(model, prompt, target, **arguments)

    expected = both(here)
    with Mac():
        found = both(there)
    assert found == (pytest.approx(expected[0], rel=1e-6), expected[1])


def test_attention_is_looked_at(models):
    """Guards `run.py attention`, whose means are in float64."""
    loaded = loading.load("tiny", device="cpu")
    prompts = [loaded.chat("Dan is 33. Zoe is 5 years older. How old is Zoe?")]
    settings = loaded.family.settings(gen_length=64, threshold=0.9, suffix_sampler=GaussianSampler(32, 3, 1.6))
    expected = attention.measure(loaded, prompts, settings, 0, 0, 20, {})
    with Mac():
        moved = dataclasses.replace(loaded, model=on_mac(loaded.model))
        found = attention.measure(moved, prompts, settings, 0, 0, 20, {})
    for one, other in zip(found["views"], expected["views"], strict=True):
        for layer, same in zip(one["layers"], other["layers"], strict=True):
            assert layer["mean"] == pytest.approx(same["mean"], abs=1e-4)
            assert layer["behind"] == pytest.approx(same["behind"], abs=1e-4)


# --- Which device -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuda, mps, expected", [
    (True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu"),
])
def test_the_first_device_that_there_is(monkeypatch, cuda, mps, expected):
    """Guards the order: CUDA, then a Mac's GPU, then the CPU; and bfloat16 on a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(loading, "_try_device", lambda place: None)
    monkeypatch.setattr(torch, "ones", lambda *arguments, **options: None)
    device, dtype = loading.placement(None, None)
    assert device.type == expected and dtype == (torch.float32 if expected == "cpu" else torch.bfloat16)


def test_a_mac_without_bfloat16(monkeypatch):
    """Guards macOS 13, whose framework has no bfloat16: one line says what to give."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(loading, "_try_device", lambda place: None)

    def refuse(*arguments, **options):
        raise TypeError("BFloat16 is not supported on MPS")

    monkeypatch.setattr(torch, "ones", refuse)
    with pytest.raises(ValueError, match="^dtype is 'bfloat16', which this Mac's system does not have; .* float16"):
        loading.placement("mps", "bfloat16")


def test_a_mac_is_waited_for(monkeypatch):
    """Guards timings: a Mac's GPU computes behind the program's back, as CUDA does."""
    waited = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append(True))
    completion.synchronize(torch.device("mps"))
    assert waited == [True]
