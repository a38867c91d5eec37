"""The suffix methods of others in the loop: choice by attention, soft states, orders and rules, one flag each.

    bash tests/run.sh tests/test_suffix_methods.py
"""

import dataclasses
import math

import pytest
import torch
from helpers import left_padded, name_of, prompts_of

import dream.generate
import llada.generate
import run
from dpad.engine import cuda_graphs
from dpad.engine.rules import RULES
from dpad.engine.settings import ALGS, CACHE_MODES, PRESETS, SAMPLER, TokenIds
from dpad.engine.soft import SoftSuffix
from dpad.engine.unmasking import noise_generator
from dream.settings import DreamSettings
from llada.settings import LLaDASettings
from sampler import AnchorSampler, AttentionSampler, FullSuffix, GaussianSampler, NoSuffix, SpotlightSampler

GENERATE = {"random_llada": llada.generate.generate, "random_dream": dream.generate.generate}
METHODS = [
    {"suffix_sampler": AttentionSampler(window=2, top_k=9)},
    {"suffix_sampler": SpotlightSampler(removed=5, beyond=20)},
    {"suffix_sampler": AnchorSampler(20, 16), "soft_suffix": SoftSuffix(k=3, alpha=0.4, warm=0.7)},
    {"suffix_sampler": AttentionSampler(window=2, top_k=9), "soft_suffix": SoftSuffix()},
    {"suffix_sampler": GaussianSampler(48, 3, 1.6, last=True), "alg": "topk_margin", "threshold": 0.02},
    {"alg": "origin", "steps": 25}, {"alg": "entropy", "steps": 15}, {"alg": "maskgit_plus", "steps": 15},
    *({"rule": rule(), "suffix_sampler": AttentionSampler(window=2, top_k=9)} for rule in RULES.values()),
    {"rule": RULES["klass"](threshold=0.001, max_kl=5.0, kl_history=1)},
    {"rule": RULES["eb"](gamma=9.0), "alg": "topk_margin"},
]


def name_of_method(method: dict) -> str:
    return "-".join(f"{key}-{name_of(value) if dataclasses.is_dataclass(value) else value}"
                    for key, value in method.items())


@pytest.fixture(params=GENERATE)
def family(request):
    """A random model and its generate."""
    return request.getfixturevalue(request.param), GENERATE[request.param]


@pytest.mark.parametrize("cache", CACHE_MODES)
@pytest.mark.parametrize("method", METHODS, ids=name_of_method)
def test_a_batch_gives_each_row_what_it_gets_alone(family, cache, method):
    """Guards choices of the suffix for each row, states and memories, when rows leave a block or the batch; counts."""
    model, generate = family
    prompts = prompts_of([3, 17, 8, 11])
    ids, mask = left_padded(prompts)
    options = dict(gen_length=80, block_length=16, cache=cache, early_termination=True, eos_id=91, seed=5)
    if not {"rule", "threshold", "steps"} & method.keys():
        options["steps"] = 20
    together = generate(model, ids, attention_mask=mask, **options | method)
    slots = 0
    for row, prompt in enumerate(prompts):
        alone = generate(model, prompt[None], **options | method)
        assert torch.equal(together.sequences[row, ids.shape[1] - len(prompt):], alone.sequences[0])
        assert torch.equal(together.decided_at[row], alone.decided_at[0])
        assert together.forwards[row] == alone.forwards[0]
        assert together.kept[row] == alone.kept[0] == sum(map(len, alone.kept_suffix))
        assert together.blocks[row] == alone.blocks[0] == len(alone.kept_suffix)
        slots += alone.tokens_processed
    assert together.tokens_processed == slots
    assert (together.decided_at.amax(dim=1) < together.forwards).all()


@pytest.mark.parametrize("method", METHODS[:4], ids=name_of_method)
@pytest.mark.parametrize("cache", CACHE_MODES[1:])
def test_steps_of_fixed_shape_give_the_same(family, cache, method):
    """Guards what CUDA graphs replay: embeddings as inputs, and slots that leave the cache within a block."""
    model, generate = family
    ids, mask = left_padded(prompts_of([3, 17]))
    options = dict(gen_length=64, block_length=16, steps=16, cache=cache, attention_mask=mask) | method
    plain = generate(model, ids, **options)
    with cuda_graphs.use("on"):
        padded = generate(model, ids, **options)
    assert torch.equal(plain.sequences, padded.sequences)
    assert plain.tokens_processed == padded.tokens_processed


# --- Choice by attention ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", CACHE_MODES)
def test_the_choice_follows_the_first_forwards_attention(family, cache):
    """Guards the scores: the mean over layers, heads and block queries, from a naive softmax over the full canvas."""
    model, generate = family
    prompt = prompts_of([9])[0]
    sampler = AttentionSampler(window=3, top_k=5)
    options = dict(gen_length=64, block_length=16, steps=16, cache=cache, suffix_sampler=sampler)
    output = generate(model, prompt[None], **options)
    mask_id = model.config.mask_token_id
    canvas = torch.cat((prompt, torch.full((64,), mask_id)))[None]
    scores = naive_scores(model, canvas, slice(9, 25))[0, 25:]
    expected = {0, 1, 2, *scores.argsort(descending=True, stable=True)[:5].tolist()}
    assert output.kept_suffix[0] == sorted(25 + place for place in expected)
    assert output.kept_suffix[-1] == []
    whole = generate(model, prompt[None], **options | {"suffix_sampler": None})
    assert output.forwards == whole.forwards
    assert output.tokens_processed < whole.tokens_processed or cache == "dual"


def naive_scores(model, canvas, queries):
    """The mean attention [1, S] of some queries, from the models' own projections, one layer after the other."""
    from dpad.engine.fused import rotate
    from dpad.engine.transformer import Attention, rope_tables

    class Recorder(Attention):
        def attend(self, layer, queries_, keys, values):
            q, k = (rotate(x.transpose(1, 2), *self.rope) for x in (queries_, keys))
            k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
            weights.append((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)[:, :, queries])
            return super().attend(layer, queries_, keys, values)

    weights: list = []
    with torch.no_grad():
        x = model.embed(canvas)
        rope = rope_tables(torch.arange(canvas.shape[1])[None], model.head_size, model.rope_theta)
        for index, layer in enumerate(model.layers):
            x = layer(x, Recorder(rope), index)
    return torch.stack(weights).mean(dim=(0, 2, 3))


def test_a_sampler_that_keeps_everything_changes_nothing(family):
    """Guards the path: with room for all, choosing by attention is vanilla decoding, to the token and to the count."""
    model, generate = family
    ids, mask = left_padded(prompts_of([3, 17]))
    for cache in CACHE_MODES:
        options = dict(gen_length=64, block_length=16, steps=16, cache=cache, attention_mask=mask)
        plain = generate(model, ids, **options)
        chosen = generate(model, ids, suffix_sampler=AttentionSampler(window=8, top_k=64), **options)
        assert torch.equal(plain.sequences, chosen.sequences) and torch.equal(plain.forwards, chosen.forwards)
        assert plain.tokens_processed == chosen.tokens_processed and plain.kept_suffix == chosen.kept_suffix


# --- Soft states ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [SoftSuffix(3, 0.4), SoftSuffix(7, 0.3, 0.5), SoftSuffix(1, 1.0, 0.0)], ids=str)
def test_soft_states_are_those_of_a_naive_loop(family, soft):
    """Guards the definition, against a loop of its own over whole sequences without a cache: one token a forward."""
    model, generate = family
    [prompt] = prompts_of([6])
    sampler = AnchorSampler(10, 16)
    output = generate(model, prompt[None], gen_length=48, block_length=16, threshold=1.0, suffix_sampler=sampler,
                      soft_suffix=soft)
    offset = model.prediction_offset
    mask_id = model.config.mask_token_id
    tokens = torch.cat((prompt, torch.full((48,), mask_id)))
    table = model.get_input_embeddings().weight
    states: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for begin in range(6, 54, 16):
            end = begin + 16
            suffix = [end + i for i in range(54 - end) if i < 10 or i % 16 == 0 or i == 53 - end]
            seen = [*range(end), *suffix]
            first = True
            while (tokens[begin:end] == mask_id).any():
                inputs = table[tokens[seen]].clone()
                for slot, place in enumerate(seen):
                    if place >= end and place in states:
                        inputs[slot] = states[place]
                    elif first and place >= begin and place in states:
                        inputs[slot] = (1 - soft.warm) * table[mask_id] + soft.warm * states[place]
                first = False
                logits = model.head(model.hidden_states(inputs[None], torch.tensor(seen)[None]))[0]
                for slot in range(end, len(seen)):
                    best = logits[slot - offset].topk(soft.k)
                    mixed = (best.values.softmax(-1)[:, None] * table[best.indices]).sum(0)
                    states[seen[slot]] = (1 - soft.alpha) * table[mask_id] + soft.alpha * mixed
                places = [place for place in range(begin, end) if tokens[place] == mask_id]
                p = torch.stack([logits[place - offset] for place in places]).double().softmax(-1)
                p[:, mask_id] = 0
                row = p.amax(-1).argmax()
                tokens[places[row]] = p[row].argmax()
    assert torch.equal(output.sequences[0], tokens)
    assert output.forwards.item() == 48


def test_soft_states_change_something_and_cost_a_probe_with_the_dual_cache(family):
    """Guards that the option has an effect, and the count of forwards: one more for each block with a suffix."""
    model, generate = family
    [prompt] = prompts_of([6])
    for cache in CACHE_MODES:
        options = dict(gen_length=64, block_length=16, steps=16, cache=cache, suffix_sampler=AnchorSampler(20, 16))
        plain = generate(model, prompt[None], **options)
        soft = generate(model, prompt[None], soft_suffix=SoftSuffix(5, 1.0), **options)
        nothing = generate(model, prompt[None], soft_suffix=SoftSuffix(5, 0.0), **options)
        extra = 3 if cache == "dual" else 0
        assert soft.forwards == plain.forwards + extra == nothing.forwards
        assert not torch.equal(soft.sequences, plain.sequences)
        assert torch.equal(nothing.sequences, plain.sequences)  # alpha 0: the state is the mask's embedding itself


# --- Orders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [LLaDASettings, DreamSettings])
def test_the_names_of_the_orders_mean_the_familys_own(family, settings):
    """Guards that LLaDA's default is maskgit_plus and Dream's entropy, and that the four orders differ."""
    model, generate = family
    [prompt] = prompts_of([6])
    answers = {alg: generate(model, prompt[None], gen_length=32, block_length=16, alg=alg).decided_at.tolist()
               for alg in (None, *ALGS)}
    own = "entropy" if generate is dream.generate.generate else "maskgit_plus"
    assert answers[None] == answers[own]
    assert len({str(answer) for answer in answers.values()}) == 4


@pytest.mark.parametrize("alg", ["maskgit_plus", "entropy", "topk_margin"])
def test_orders_are_their_formulas(family, alg):
    """Guards each order's numbers at the first step against the definition on the whole distribution."""
    model, generate = family
    [prompt] = prompts_of([6])
    mask_id = model.config.mask_token_id
    canvas = torch.cat((prompt, torch.full((16,), mask_id)))[None]
    with torch.no_grad():
        logits = model(canvas).logits[0, 6 - model.prediction_offset : 22 - model.prediction_offset]
    p = logits.double().softmax(-1)
    best = p.clone()
    best[:, mask_id] = 0
    top = best.topk(2).values
    measure = {"maskgit_plus": top[:, 0], "topk_margin": top[:, 0] - top[:, 1], "entropy": (p * p.log()).sum(-1)}[alg]
    seen = {}

    class Streamer:
        def put(self, _): pass
        def end(self): pass
        def put_step(self, block, columns, choice, candidates, confidence):
            seen.setdefault("confidence", confidence[0])
            seen.setdefault("choice", choice[0])

    generate(model, prompt[None], gen_length=16, block_length=16, alg=alg, streamer=Streamer())
    torch.testing.assert_close(seen["confidence"], measure, atol=1e-6, rtol=1e-6)


def test_a_random_order_is_drawn_with_dreams_probabilities():
    """Guards `origin`: a mask goes at a step with probability 1 - t_j+1 / t_j, whatever the model says, and the last
    step takes the rest; forwards that would decode nothing are not made."""
    settings = LLaDASettings(gen_length=8, block_length=8, steps=4, alg="origin")
    rule = llada.generate.LLaDARule(settings, tokens=None)
    counts = torch.zeros(3)
    for block in range(2000):
        rule.begin_block(block)
        counts += torch.bincount(rule.turns, minlength=3)
    t = torch.linspace(1, 1e-3, 5)
    first, second = 1 - t[2] / t[1], 1 - t[3] / t[2]
    expected = torch.tensor([first, (1 - first) * second, (1 - first) * (1 - second)])
    assert ((counts / 16000 - expected).abs() < 0.02).all()
    assert noise_generator(1, 2, 3).initial_seed() != noise_generator(1, 2, -1).initial_seed()


def test_the_margin_rule_is_stricter_than_the_threshold(family):
    """Guards `alg topk_margin` with a threshold: a margin is at most the probability, so it decodes less at once."""
    model, generate = family
    [prompt] = prompts_of([6])
    options = dict(gen_length=64, block_length=16, threshold=0.02)
    plain = generate(model, prompt[None], **options)
    margin = generate(model, prompt[None], alg="topk_margin", **options)
    assert margin.forwards > plain.forwards


def test_the_margin_is_of_the_two_likeliest_tokens_whatever_is_drawn():
    """Guards the margin at a temperature above 0, where the candidate need not be the likeliest token; never the mask.
    """
    p = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3], [0.0, 0.35, 0.65]], dtype=torch.float64)
    rule = llada.generate.LLaDARule(LLaDASettings(alg="topk_margin", temperature=1.0), TokenIds(mask=0, eos=1))
    for drawn in (1, 2):
        margins = rule.order(p.log(), torch.tensor([drawn] * 3), torch.arange(3))
        torch.testing.assert_close(margins, torch.tensor([0.1, 0.3, 0.3], dtype=torch.float64))


@pytest.mark.parametrize("rule", [RULES["eb"](), RULES["credit"](credit_power=0)], ids=name_of)
def test_a_suppressed_eos_counts_for_nothing(rule):
    """Guards rules that look at whole distributions: the entropies and credits of EB and credit are without EOS."""
    settings = LLaDASettings(gen_length=8, block_length=8, rule=rule, suppress_eos="never")
    unmasking = llada.generate.LLaDARule(settings, TokenIds(mask=0, eos=1))
    unmasking.begin_block(0, torch.tensor([0]))
    place = torch.tensor([0]), torch.tensor([0])
    logits = unmasking.adjust(torch.tensor([[0.0, 5.0, 2.0, 1.0]]), *place)
    assert logits[0, 1] == -math.inf
    if isinstance(rule, RULES["credit"]):
        assert logits[0].tolist() == pytest.approx([0, -math.inf, 2 + 0.7 * math.log(2), 1])
        return
    p = torch.tensor([0.0, 2.0, 1.0]).double().softmax(-1)
    torch.testing.assert_close(unmasking.entropy(logits), -(p * p.log()).sum(-1, keepdim=True))
    _, order = unmasking.candidates(logits, place[1], 0, noise_generator(0, 0, 0))
    torch.testing.assert_close(order, -unmasking.entropy(logits), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rule, settings", [
    ("falling", {"threshold": 0.02, "fall": 0.0}), ("localleap", {"threshold": 0.02, "near_threshold": 0.02}),
    ("credit", {"threshold": 0.02, "credit_weight": 0.0}),
])
@pytest.mark.parametrize("cache", CACHE_MODES)
def test_rules_without_their_part_are_the_plain_threshold(family, cache, rule, settings):
    """Guards the hooks of the loop: each rule, switched off, decodes as a threshold does."""
    model, generate = family
    ids, mask = left_padded(prompts_of([3, 17]))
    options = dict(gen_length=64, block_length=16, cache=cache, attention_mask=mask)
    plain = generate(model, ids, threshold=0.02, **options)
    ruled = generate(model, ids, rule=RULES[rule](**settings), **options)
    assert torch.equal(plain.sequences, ruled.sequences) and torch.equal(plain.decided_at, ruled.decided_at)


@pytest.mark.parametrize("cache", CACHE_MODES)
def test_rules_never_decode_the_mask(family, cache):
    """Guards every rule against a model whose favourite token is the mask."""
    model, generate = family
    [prompt] = prompts_of([6])
    favourite = generate(model, prompt[None], gen_length=32, block_length=16).sequences[0, 6:].mode().values.item()
    for rule in RULES.values():
        output = generate(model, prompt[None], gen_length=32, block_length=16, cache=cache, rule=rule(),
                          mask_id=favourite)
        assert not (output.sequences[0, 6:] == favourite).any() and (output.decided_at >= 0).all()


# --- As people say them -----------------------------------------------------------------------------------------------


def test_presets_are_the_published_samplers():
    """Guards `-d streaming` and `-d ssm`: their windows, a stride of one block, and windows that fit short answers."""
    choose = LLaDASettings.from_choices
    assert choose({"dropout_strategy": "streaming"}).suffix_sampler == AnchorSampler(96, 0, True)
    assert choose({"dropout_strategy": "ssm", "block_length": 64}).suffix_sampler == AnchorSampler(64, 64, True)
    assert choose({"dropout_strategy": "ssm", "gen_length": 32}).suffix_sampler == AnchorSampler(32, 32, True)
    assert choose({"dropout_strategy": "ssm", "window": 80}).suffix_sampler == AnchorSampler(80, 32, True)
    assert choose({"dropout_strategy": "attention"}).suffix_sampler == AttentionSampler(8, 64)
    strided = choose({"dropout_strategy": "anchor", "stride": 8}).suffix_sampler
    assert strided == AnchorSampler(64, 8) and strided.retention(224).sum() < 90, "the stride makes a difference"
    for name in PRESETS:
        values = {"dropout_strategy": name} | ({"number": 4} if name == "random" else {})
        settings = choose(values)
        assert LLaDASettings.from_choices(settings.as_choices()) == settings


@pytest.mark.parametrize("values, message", [
    ({"dropout_strategy": "ssm", "stride": 8}, "stride is 8, but dropout_strategy ssm sets it itself; for another"),
    ({"dropout_strategy": "gaussian", "stride": 8}, "stride is 8, but dropout_strategy gaussian does not use it"),
    ({"dropout_strategy": "gaussian", "top_k": 8}, "top_k is 8, but dropout_strategy gaussian does not use it"),
    ({"dropout_strategy": "gaussian", "number": 8}, "num_tokens is 8, but dropout_strategy gaussian does not use it"),
    ({"dropout_strategy": "uniform", "number": 8, "k_sigma": 2.0}, "k_sigma is 2.0, but dropout_strategy uniform does"),
    ({"dropout_strategy": "anchors"}, "dropout_strategy is 'anchors'; .* did you mean 'anchor'"),
    ({"last": True}, "keep_last is True, but dropout_strategy null does not use it; it has no settings of its own"),
    ({"rule": "eb", "threshold": 0.9}, "threshold is 0.9 while rule is eb, which does not use it; give one of the two"),
    ({"gamma": 0.1}, "gamma is 0.1, but rule none does not use it"),
    ({"rule": "falling", "gamma": 0.1}, "gamma is 0.1, but rule falling does not use it; it has threshold, fall"),
    ({"rule": "localeap"}, "rule is 'localeap'; .* did you mean 'localleap'"),
    ({"rule": "klass", "factor": 0.9}, "factor is 0.9, but there is a rule already"),
    ({"rule": "klass", "steps": 64}, "steps is 64, but"),
    ({"rule": "falling", "alg": "entropy"}, "alg is 'entropy'; with rule falling it must be maskgit_plus"),
    ({"threshold": 0.9, "alg": "entropy"}, "alg is 'entropy'; with a threshold it must be maskgit_plus or topk_margin"),
    ({"threshold": 0.9, "alg": "origin"}, "alg is 'origin'; with a threshold it must be maskgit_plus or topk_margin"),
    ({"remasking": "random", "alg": "entropy"}, "remasking is 'random', but alg entropy orders the positions already"),
    ({"alpha": 0.3}, "soft_alpha is 0.3, but soft_suffix off does not use it"),
    ({"soft_suffix": True, "alpha": 1.5}, "soft_alpha is 1.5; it must be a finite number of at least 0 and at most 1"),
    ({"soft_suffix": True, "dropout_strategy": "block"}, "soft_suffix is on, but dropout_strategy block keeps no"),
])
def test_clashes_are_one_sentence(values, message):
    """Guards people against settings that would be ignored, or mean two things."""
    with pytest.raises(ValueError, match=message) as error:
        LLaDASettings.from_choices(values)
    assert "\n" not in str(error.value)


def test_a_switch_is_not_turned_on_and_off(capsys):
    """Guards `--keep_last --no_keep_last`, of which the last one would count in silence."""
    with pytest.raises(SystemExit) as stop:
        run.main(["generate", "-m", "tiny", "-d", "gaussian", "--keep_last", "--no_keep_last", "--prompt", "x"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "--no_keep_last: not allowed with argument --keep_last" in error
    assert error.count("\n") == 1


def test_a_rules_threshold_is_the_rules():
    """Guards `--rule falling -th 0.8`: the flag that people know sets the rule's threshold."""
    settings = LLaDASettings.from_choices({"rule": "falling", "threshold": 0.8})
    assert settings.threshold is None and settings.rule == RULES["falling"](threshold=0.8)
    assert settings.as_choices()["threshold"] == 0.8 and settings.to_json()["rule"]["threshold"] == 0.8
    assert LLaDASettings.from_choices({"rule": "falling", "threshold": None}).rule.threshold == 0.9
    assert DreamSettings.from_choices({"dropout_strategy": "attention", "top_k": 5}).suffix_sampler.top_k == 5
    assert DreamSettings.from_choices({"top_k": 5}).top_k == 5
    with pytest.raises(ValueError, match="top_k is 5, but with dropout_strategy attention the sampler has this name"):
        DreamSettings(top_k=5, suffix_sampler=AttentionSampler())


def test_only_draws_depend_on_the_seed():
    """Guards what a comparison repeats: deterministic methods once, others once a seed."""
    assert not LLaDASettings(suffix_sampler=AnchorSampler(64)).is_random and LLaDASettings(alg="origin").is_random
    assert LLaDASettings(suffix_sampler=GaussianSampler()).is_random and LLaDASettings(temperature=0.2).is_random
    assert not LLaDASettings(suffix_sampler=FullSuffix()).is_random
    assert LLaDASettings(remasking="random").is_random and DreamSettings(alg_temp=0.5).is_random
    assert SAMPLER.name_of(NoSuffix()) == "block"
