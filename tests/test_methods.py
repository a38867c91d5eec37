"""Tests of dpad/engine/methods.py and `--method`: each method is what its authors published, flags replace its parts.

    bash tests/run.sh tests/test_methods.py
"""

from __future__ import annotations

import json

import pytest

import run
from dpad.engine.configurations import CONFIGURATIONS, dpad_parameters
from dpad.engine.methods import BASELINES, METHODS, combine, find_method
from dpad.engine.rules import FallingThreshold
from dpad.engine.soft import SoftSuffix
from dream.settings import DreamSettings
from llada.settings import LLaDASettings
from sampler import AnchorSampler, EvenGaussianSampler, GaussianSampler, WindowSampler

FAMILIES = (LLaDASettings, DreamSettings)
PROMPT = "Dan is 33. Zoe is 5 years older. How old is Zoe?"
PAPER = {"vanilla": "Vanilla", "vanilla-stop": "Vanilla+EarlyTermination", "dpad": "+DPad", "parallel": "+Parallel",
         "dpad-parallel": "+Parallel+DPad", "fast-dllm": "+Parallel+PrefixCache",
         "dpad-parallel-cache": "+Parallel+PrefixCache+DPad"}


def settings_of(name, own=(), shared=(), family=LLaDASettings, model="tiny"):
    choices, used = combine(METHODS[name] if name else None, dict(own), dict(shared), family, model)
    return family.from_choices(choices), used


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_decodes_both_models(name, family):
    """Guards names of settings that a family does not have, and answers that are shorter than a window."""
    for length in (256, 64):
        settings, _ = settings_of(name, {"gen_length": length}, family=family)
        assert settings.gen_length == length and settings.block_length == 32
        assert settings.early_termination == (settings.suffix_sampler.__class__.__name__ != "FullSuffix"
                                              or name == "vanilla-stop")
    assert METHODS[name].help and METHODS[name].source and find_method(name) is METHODS[name]


@pytest.mark.parametrize("name, configuration", PAPER.items())
@pytest.mark.parametrize("model", ["tiny", "instruct"])
def test_the_papers_methods_are_its_configurations(name, configuration, model):
    """Guards two homes for one thing: the short names decode exactly as the paper's long ones."""
    theirs = LLaDASettings.from_choices(CONFIGURATIONS[configuration].choices(512, **dpad_parameters(model)))
    assert settings_of(name, {"gen_length": 512}, model=model)[0] == theirs


def test_the_rivals_are_as_published():
    """Guards the two methods by their papers: Streaming-dLLM's whole, SSM with and without soft states."""
    streaming, _ = settings_of("streaming")
    assert streaming.suffix_sampler == AnchorSampler(96, 0, True) and streaming.cache == "prefix"
    assert streaming.rule == FallingThreshold(0.9, 0.3) and streaming.early_termination
    ssm, _ = settings_of("ssm", {"block_length": 16})
    assert ssm.suffix_sampler == AnchorSampler(64, 16, True)
    assert ssm.soft_suffix == SoftSuffix(5, 0.4, 1.0) and (ssm.threshold, ssm.cache) == (0.9, "none")
    hard, _ = settings_of("ssm-hard", {"block_length": 16})
    assert hard.soft_suffix is None and hard.suffix_sampler == ssm.suffix_sampler
    assert settings_of("dpad-even")[0].suffix_sampler == EvenGaussianSampler(256, 3, 1.6)
    assert settings_of("dpad-last")[0].suffix_sampler == GaussianSampler(256, 3, 1.6, last=True)
    assert settings_of("margin")[0].alg == "topk_margin" and settings_of("eb")[0].rule.gamma == 0.001


def test_other_flags_replace_one_setting_each():
    """Guards a method's own parameters, which another sampler or rule must not inherit."""
    assert settings_of("streaming", {"threshold": 0.8})[0].rule == FallingThreshold(0.8, 0.3)
    assert settings_of("streaming", {"cache": "none"})[0].cache == "none"
    assert settings_of("dpad", {"window": 32})[0].suffix_sampler == GaussianSampler(32, 3, 1.6)
    settings, _ = settings_of("dpad", {"dropout_strategy": "window"})
    assert settings.suffix_sampler == WindowSampler(256) and settings.early_termination
    eb, _ = settings_of("ssm", {"rule": "eb"})
    assert (eb.rule.gamma, eb.threshold) == (0.001, None) and eb.soft_suffix is not None
    factor, _ = settings_of("dpad-parallel", {"factor": 1.0})
    assert (factor.factor, factor.threshold) == (1.0, None)
    with pytest.raises(ValueError, match="k_sigma is 3, but dropout_strategy ssm does not use it"):
        settings_of("ssm", {"k_sigma": 3})
    with pytest.raises(ValueError, match="block_length is 0; it must be"):
        settings_of("ssm", {"block_length": 0})


def test_shared_choices_leave_what_a_method_is():
    """Guards a fair comparison: one threshold and cache for all, and yet vanilla decoding and each sampler stay."""
    shared = {"threshold": 0.8, "cache": "dual", "window": 48, "k_sigma": 2.0}
    for name in METHODS:
        settings, used = settings_of(name, shared=shared)
        plain, _ = settings_of(name)
        assert type(settings.suffix_sampler) is type(plain.suffix_sampler), name
        if name in BASELINES:
            assert settings == plain and not used
        if "window" in used:
            assert settings.suffix_sampler.window == 48
        assert ("k_sigma" in used) == isinstance(settings.suffix_sampler, GaussianSampler)
        threshold = getattr(settings.rule, "threshold", settings.threshold)
        assert threshold == (None if name in (*BASELINES, "eb") else 0.8), name
        assert (settings.cache == "dual") == ("cache" in used)
    assert "early_termination" in settings_of("dpad", shared={"early_termination": True})[1], "it is so anyway"
    other = {"dropout_strategy": "gaussian", "window": 32}
    assert settings_of("eb", shared=other)[0].suffix_sampler == GaussianSampler(32)
    assert settings_of("streaming", shared=other)[0].suffix_sampler.window == 96
    assert settings_of("vanilla", shared={"steps": 64})[0].steps == 64
    assert settings_of("parallel", shared={"steps": 64})[0].threshold == 0.9
    assert settings_of(None, {"dropout_strategy": "block"}, {"threshold": 0.5})[0].threshold == 0.5


@pytest.mark.parametrize("model", ["tiny", "dream-tiny"])
def test_one_flag_on_the_command_line(model, capsys):
    """The rivals run from one flag each, and the flag's help names all methods."""
    for name in ("streaming", "ssm"):
        assert run.main(["generate", "-m", model, "-l", "64", "--method", name, "--json", "--prompt", PROMPT]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert 0 < answer["forwards"] <= 64 and answer["tokens"] > 0
    with pytest.raises(SystemExit):
        run.main(["generate", "--help"])
    text = "".join(capsys.readouterr().out.split())
    assert all(name in text for name in METHODS)


@pytest.mark.parametrize("flags, message", [
    (["--method", "streeming"], "did you mean 'streaming'?"),
    (["--method", "ssm", "--stride", "8"], "stride is 8, but dropout_strategy ssm sets it itself"),
    (["--method", "eb", "-th", "0.5"], "threshold is 0.5 while rule is eb"),
    (["--method", "ssm", "--method", "dpad"], "given twice"),
])
def test_what_cannot_be_used_is_one_sentence(flags, message, capsys):
    try:
        status = run.main(["generate", "-m", "tiny", *flags, "--prompt", "x"])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and message in error and error.count("\n") == 1


def test_a_task_that_decodes_nothing_takes_no_method():
    args = run.parser_of("evaluate").parse_args(["-t", "choices-local", "--method", "dpad"])
    with pytest.raises(ValueError, match="^method: task choices-local asks for log-likelihoods alone"):
        run.check_use_of_flags(args, {"loglikelihood"})
