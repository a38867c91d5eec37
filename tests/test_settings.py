"""Settings: written once as a field, derived everywhere else; checked; the same object from the flag to the loop.

    bash tests/run.sh tests/test_settings.py
"""

import dataclasses
import inspect
import json
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import run
from dpad.engine.fields import setting, settings_of, takes_settings
from dpad.engine.loading import FAMILIES
from dpad.engine.settings import DecodingSettings
from dream.generate import generate as dream_generate
from dream.settings import DreamSettings
from llada.generate import generate as llada_generate
from llada.settings import LLaDASettings
from sampler import SAMPLERS, FullSuffix, GaussianSampler, UniformSampler, WindowSampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatientSettings(LLaDASettings):
    """A family with one more setting: the one line is all that its author writes."""

    family: ClassVar[str] = "Patient"
    patience: int = setting(3, "forwards that a block waits for a confident token", minimum=0, unit="forwards")


def test_a_setting_is_one_line(monkeypatch):
    """Guards the promise that a new field is a flag, a keyword, a choice for people, and an entry in records."""
    monkeypatch.setattr("llada.settings.LLaDASettings", PatientSettings)
    parser = run.parser_of("evaluate")
    assert "--patience N" in parser.format_help() and "(forwards; default: 3)" in parser.format_help()

    settings = run.settings_from(parser.parse_args(["-m", "tiny", "--patience", "5", "-th", "0.9"]))
    assert settings.patience == 5 and settings.as_choices()["patience"] == 5
    assert settings.to_json()["patience"] == 5 and PatientSettings().to_json()["patience"] == 3
    with pytest.raises(ValueError, match="patience is -1; it must be an integer of at least 0"):
        PatientSettings(patience=-1)

    @takes_settings(PatientSettings)
    def generate(model, input_ids, **settings):
        """Answers.

        Args:
            {settings}
        """
        return PatientSettings(**settings)

    assert inspect.signature(generate).parameters["patience"].default == 3
    assert "patience: forwards that a block waits" in generate.__doc__
    assert generate(None, None, patience=7).patience == 7
    with pytest.raises(TypeError, match="patient"):
        generate(None, None, patient=7)


@pytest.mark.parametrize("generate, cls", [(llada_generate, LLaDASettings), (dream_generate, DreamSettings)])
def test_generate_has_a_real_signature(generate, cls):
    """Guards `help(generate)`: every setting with its default, and no **keywords."""
    parameters = inspect.signature(generate).parameters
    for field in dataclasses.fields(cls):
        assert parameters[field.name].default == field.default
        assert f"{field.name}:" in generate.__doc__
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def test_the_command_line_offers_every_setting_of_every_family():
    """Guards against flags that are written by hand."""
    text = run.parser_of("evaluate").format_help()
    for family in FAMILIES.values():
        for entry in family.settings.choices():
            assert all(flag in text for flag in entry.flags)


def flags_of(settings):
    """The command line that stands for settings, every flag spelled out."""
    entries = {entry.name: entry for entry in type(settings).choices()}
    words = []
    for name, value in settings.as_choices().items():
        if value is True:
            words.append(entries[name].flags[-1])
        elif value is not None and value is not False:
            words += [entries[name].flags[-1], str(value)]
    return words


samplers = st.one_of(
    st.just(FullSuffix()), st.builds(WindowSampler, st.integers(1, 64)),
    st.builds(GaussianSampler, st.integers(1, 64), st.floats(0.1, 9), st.floats(0.1, 9)),
    st.builds(UniformSampler, st.integers(1, 64), st.integers(1, 64)),
)


caches = st.one_of(
    st.just({}), st.fixed_dictionaries({"cache": st.sampled_from(["none", "prefix", "dual"])}),
    st.fixed_dictionaries({
        "cache": st.sampled_from(["prefix", "dual"]), "refresh": st.one_of(st.just("never"), st.integers(2, 9)),
    }),
)


@given(sampler=samplers, cache=caches, early=st.booleans(),
       threshold=st.one_of(st.none(), st.floats(0.01, 1)), blocks=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_settings_survive_the_way_through_flags_choices_and_json(sampler, cache, early, threshold, blocks, seed):
    """Guards every translation of the one object: none loses, invents or changes a choice."""
    settings = LLaDASettings(gen_length=64 * blocks, block_length=64, suffix_sampler=sampler, seed=seed,
                             early_termination=early, threshold=threshold, **cache)
    assert LLaDASettings.from_choices(settings.as_choices()) == settings
    args = run.parser_of("evaluate").parse_args(["-m", "tiny", *flags_of(settings)])
    assert run.settings_from(args) == settings
    record = json.loads(json.dumps(settings.to_json()))
    assert record["steps"] == settings.total_steps and record["threshold"] == threshold
    assert record["cache"] == cache.get("cache", "none") and record.get("refresh") == cache.get("refresh")
    name = {kind: name for name, kind in SAMPLERS.items()}[type(sampler)]
    parameters = {key: value for key, value in dataclasses.asdict(sampler).items() if key != "last" or value}
    assert record["suffix_sampler"] == (None if name == "null" else {"name": name} | parameters)


def test_cache_flags_in_any_order():
    """Guards the two flags that people know: dual includes prefix."""
    for words in (["-c", "-dc"], ["-dc", "-c"], ["-dc"], ["--cache", "dual"]):
        args = run.parser_of("evaluate").parse_args(["-m", "tiny", *words])
        assert run.settings_from(args).cache == "dual"


@pytest.mark.parametrize("cls, values, message", [
    (LLaDASettings, {"top_p": 0.9}, "top_p: not a setting of LLaDA"),
    (DreamSettings, {"factor": 1.0}, "factor: not a setting of Dream"),
    (LLaDASettings, {"block_length": 48}, "block_length is 48; it must divide gen_length"),
    (LLaDASettings, {"dropout_strategy": "gauss"}, "dropout_strategy is 'gauss'; it must be one of null, gaussian"),
    (LLaDASettings, {"window": 8}, "window is 8, but dropout_strategy null does not use it"),
    (LLaDASettings, {"dropout_strategy": "uniform", "k_sigma": 3}, "k_sigma is 3, but dropout_strategy uniform does"),
    (LLaDASettings, {"dropout_strategy": "uniform"}, "num_tokens is 0, so that dropout_strategy uniform would keep no"),
    (LLaDASettings, {"dropout_strategy": "random", "number": 0}, "num_tokens is 0, so that dropout_strategy random wo"),
    (LLaDASettings, {"dropout_strategy": "window", "window": 512}, "window is 512; it must be at most gen_length"),
    (LLaDASettings, {"threshold": 0.9, "steps": 64}, "steps is 64, but a threshold, factor or rule decides"),
    (LLaDASettings, {"threshold": 0.9, "factor": 1.0}, "factor is 1.0 while threshold is 0.9"),
    (DreamSettings, {"threshold": 0.9, "alg_temp": 1.0}, "alg_temp is 1.0 while threshold is 0.9"),
    (DreamSettings, {"top_p": 1.5}, "top_p is 1.5; it must be a finite number above 0 and at most 1"),
    (DreamSettings, {"top_k": 0}, "top_k is 0; it must be an integer of at least 1"),
    (LLaDASettings, {"early_termination": "yes"}, "early_termination is 'yes'; it must be True or False"),
    (LLaDASettings, {"gen_length": True}, "gen_length is True; it must be an integer"),
])
def test_clashes_and_bad_values_are_one_sentence(cls, values, message):
    """Guards the words: the setting as its flag names it, its value, and what is allowed."""
    with pytest.raises(ValueError, match=f"^{message}"):
        cls.from_choices(values)


def test_a_threshold_replaces_the_steps_of_generate():
    """Guards calls that give both, which the command line refuses."""
    settings = LLaDASettings(gen_length=64, threshold=0.9, steps=64)
    assert settings == LLaDASettings(gen_length=64, threshold=0.9)
    assert settings.total_steps == 2 and LLaDASettings.from_choices(settings.as_choices()) == settings


def test_a_window_that_nobody_chose_fits_the_answer():
    """Guards short answers: the default window shrinks to them; a window that was chosen is refused instead."""
    settings = DecodingSettings.from_choices({"dropout_strategy": "gaussian", "gen_length": 64})
    assert settings.suffix_sampler.window == 64


@pytest.mark.parametrize("name, text, value", [
    ("gen_length", "128", 128), ("threshold", "0", None), ("threshold", "0.9", 0.9), ("steps", "none", None),
    ("early_termination", "on", True), ("early_termination", "no", False), ("cache", "prefix", "prefix"),
])
def test_words_become_values(name, text, value):
    """Guards what people type into the chat."""
    [entry] = [entry for entry in settings_of(LLaDASettings) if entry.name == name]
    assert entry.parse(text) == value


@pytest.mark.parametrize("name, text, message", [
    ("gen_length", "many", "gen_length is 'many'; it must be an integer of at least 1"),
    ("block_length", "0", "block_length is 0; it must be an integer of at least 1"),
    ("threshold", "2", "threshold is 2.0; it must be a finite number of at least 0 and at most 1"),
    ("early_termination", "maybe", "early_termination is 'maybe'; it must be on or off"),
    ("cache", "full", "cache is 'full'; it must be one of none, prefix, dual"),
])
def test_words_that_mean_nothing_are_refused(name, text, message):
    [entry] = [entry for entry in settings_of(LLaDASettings) if entry.name == name]
    with pytest.raises(ValueError, match=message):
        entry.parse(text)


@pytest.mark.parametrize("flags, expected", [
    ("", {"steps": None, "threshold": None, "cache": "none", "suffix_sampler": FullSuffix()}),
    ("--threshold 0.9", {"total_steps": 8, "threshold": 0.9}),
    ("--factor 1 --gen_length 64", {"total_steps": 2, "factor": 1.0}),
    ("--use_cache", {"cache": "prefix"}),
    ("--dropout_strategy gaussian", {"suffix_sampler": GaussianSampler(256, 4.0, 2.0)}),
    ("--dropout_strategy gaussian --gen_length 128", {"suffix_sampler": GaussianSampler(128, 4.0, 2.0)}),
    ("--dropout_strategy random --num_tokens 3", {"suffix_sampler": UniformSampler(256, 3)}),
    ("--dropout_strategy window --window 7", {"suffix_sampler": WindowSampler(7)}),
])
def test_flags_mean_what_the_published_command_line_means(flags, expected):
    """Guards each flag's meaning and its default."""
    settings = run.settings_from(run.parser_of("evaluate").parse_args(["-m", "tiny", *flags.split()]))
    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize("values, message", [
    ({"threshold": 1.5}, "threshold is 1.5"), ({"threshold": -0.1}, "threshold is -0.1"),
    ({"factor": 0.0}, "factor is 0.0"), ({"steps": 7}, "steps is 7"), ({"steps": 512}, "steps is 512"),
    ({"block_length": 7}, "block_length is 7"), ({"gen_length": 0}, "gen_length is 0"),
    ({"dropout_strategy": "window", "window": 0}, "window is 0"),
    ({"dropout_strategy": "uniform", "number": -1}, "num_tokens is -1"),
    ({"dropout_strategy": "gaussian", "k_sigma": 0.0}, "k_sigma is 0.0"),
    ({"remasking": "high"}, "remasking is 'high'"), ({"temperature": -1.0}, "temperature is -1.0"),
    ({"treshold": 0.9}, "treshold: not a setting of LLaDA, which has gen_length, block_length"),
    ({"seed": 2**64}, "seed is 18446744073709551616; it must be an integer from 0 to 9223372036854775807"),
])
def test_values_outside_their_bounds_are_one_sentence(values, message):
    """Guards every setting alone: refused before a model is loaded, with its name, its value and what is allowed."""
    with pytest.raises(ValueError, match=f"^{message}"):
        LLaDASettings.from_choices(values)


@pytest.mark.parametrize("cls", [LLaDASettings, DreamSettings])
def test_one_vocabulary(cls):
    """Guards that a setting has one name: its keyword in `generate`, its key in records, its label and its flag."""
    assert [entry.label for entry in settings_of(cls)] == [entry.name for entry in settings_of(cls)]
    labels = [entry.label for entry in cls.choices()]
    assert len(set(labels)) == len(labels)
    said = [name for entry in cls.choices() for name in entry.names]
    assert len(set(said)) == len(said) and {"block_size", "dropout_strategy"} <= {*said}
