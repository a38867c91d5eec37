"""Cached steps over fixed shapes: the same tokens as the plain steps, whatever is padded, in any order of calls.

On the CPU the padded steps run without a recording; what a GPU adds is the replay alone.

    bash tests/run.sh tests/test_graphs.py
"""

import copy
import gc
import weakref

import pytest
import torch
from helpers import left_padded, prompts_of

import dream.generate
import llada.generate
from dpad.engine import cuda_graphs
from dpad.engine.transformer import SlotCache
from sampler import GaussianSampler


@pytest.fixture(scope="module", params=["llada", "dream"])
def subject(request, random_llada, random_dream):
    """A random model and its generate call."""
    return {"llada": (random_llada, llada.generate.generate), "dream": (random_dream, dream.generate.generate)}[
        request.param]


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("schedule", [{"steps": 12}, {"threshold": 0.02, "steps": 6}], ids=["fixed", "threshold"])
def test_padded_steps_decode_the_same(subject, cache, schedule):
    """Guards buckets, the spare slot, masks, rows that leave, and buffers that a longer call replaces."""
    model, generate = subject
    for lengths in ([9], [3, 17, 8, 30, 1], [200, 4]):
        ids, mask = left_padded(prompts_of(lengths))
        options = dict(gen_length=96, block_length=16, cache=cache, suffix_sampler=GaussianSampler(48, 3, 1.6),
                       early_termination=True, eos_id=91, seed=5, attention_mask=mask) | schedule
        plain = generate(model, ids, **options)
        with cuda_graphs.use("on"):
            padded = generate(model, ids, **options)
        assert torch.equal(plain.sequences, padded.sequences)
        assert torch.equal(plain.decided_at, padded.decided_at)
        assert plain.tokens_processed == padded.tokens_processed


def test_shapes_are_few(random_llada):
    """Guards the number of recordings: the kept suffix varies from block to block, the shapes hardly do."""
    ids = prompts_of([20])[0][None]
    kept = set()
    with cuda_graphs.use("on"):
        for seed in range(6):
            output = llada.generate.generate(random_llada, ids, gen_length=256, block_length=16, steps=32, seed=seed,
                                             cache="prefix", suffix_sampler=GaussianSampler(96, 3, 1.6))
            kept |= {len(block) for block in output.kept_suffix}
        steps = cuda_graphs._caches[random_llada][cuda_graphs.GraphedCache].steps
    assert len(kept) > 15
    queries = {shape[1] for shape in steps if shape[0] == 1}
    cached = 1 + (max(kept) + 16) // cuda_graphs.QUERY_BUCKET
    full = 1 + (20 + 256) // cuda_graphs.SLOT_BUCKET
    assert len(queries) <= cached + full
    for _, queries, slots, _ in steps:
        assert queries % cuda_graphs.QUERY_BUCKET == 0 and slots % cuda_graphs.KEY_BUCKET == 0


def test_the_oldest_shape_makes_room(random_llada, monkeypatch):
    """Guards memory: no more recordings than MAX_GRAPHS."""
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    cuda_graphs._caches.pop(random_llada, None)
    with cuda_graphs.use("on"):
        for length in (290, 150, 5):  # the longest first: buffers that grow start anew
            llada.generate.generate(random_llada, prompts_of([length])[0][None], gen_length=32, block_length=16,
                                    steps=4, cache="dual")
        assert len(cuda_graphs._caches[random_llada][cuda_graphs.GraphedCache].steps) == 2


def test_new_weights_are_used(subject):
    """Guards against replaying over old weights, and against keeping a model alive."""
    model, generate = subject
    fresh = type(model)(model.config).eval()
    ids, options = prompts_of([12])[0][None], dict(gen_length=32, block_length=16, steps=8, cache="dual")
    with cuda_graphs.use("on"):
        generate(fresh, ids, **options)
        fresh.load_state_dict(model.state_dict(), assign=True)
        again = generate(fresh, ids, **options)
    assert torch.equal(again.sequences, generate(model, ids, **options).sequences)
    before = len(cuda_graphs._caches)
    del fresh
    gc.collect()
    assert len(cuda_graphs._caches) == before - 1


def test_a_second_call_at_the_same_time_gets_its_own_cache(random_llada):
    """Guards threads: the buffers of a model serve one call at a time."""
    with cuda_graphs.use("on"), cuda_graphs.slot_cache(random_llada, 1, 40) as first:
        with cuda_graphs.slot_cache(random_llada, 1, 40) as second:
            assert isinstance(first, cuda_graphs.GraphedCache) and not isinstance(second, cuda_graphs.GraphedCache)
    with cuda_graphs.use("on"), cuda_graphs.slot_cache(random_llada, 1, 40) as third:
        assert third is first


def test_buffers_stay_from_call_to_call(random_llada, monkeypatch):
    """Guards both kinds: allocated once for what fits; and where memory ran out, the next call finds buffers again."""
    for mode in ("off", "on"):
        cuda_graphs.forget()
        with cuda_graphs.use(mode):
            with cuda_graphs.slot_cache(random_llada, 2, 100) as first:
                place = first.buffer.data_ptr()
            with cuda_graphs.slot_cache(random_llada, 1, 60) as second:
                assert second is first and second.buffer.data_ptr() == place
            with monkeypatch.context() as full:
                full.setattr(SlotCache, "allocate", staticmethod(lambda *_: 1 / 0))
                with pytest.raises(ZeroDivisionError), cuda_graphs.slot_cache(random_llada, 64, 4000):
                    pass
            with cuda_graphs.slot_cache(random_llada, 2, 100) as third:
                assert third is first and third.buffer.shape[2] >= 2 and third.buffer.shape[4] >= 100


def test_what_a_failed_call_left_does_no_harm(subject):
    """Guards later calls: NaN anywhere in the buffers of an earlier one reaches no token."""
    model, generate = subject
    options = dict(gen_length=48, block_length=16, steps=12, cache="prefix", suffix_sampler=GaussianSampler(24, 3, 1.6))
    ids = prompts_of([150])[0][None]
    plain = generate(model, ids[:, :21], **options)
    with cuda_graphs.use("on"):
        generate(model, ids, **options)
        cuda_graphs._caches[model][cuda_graphs.GraphedCache].buffer.fill_(float("nan"))
        again = generate(model, ids[:, :21], **options)
    assert torch.equal(plain.sequences, again.sequences)


@pytest.mark.parametrize("mode", ["off", "on"])
def test_buffers_outlive_inference_mode(random_llada, mode):
    """Guards calls after one under torch.inference_mode(), whose tensors nobody may write to outside of it."""
    cuda_graphs.forget()
    ids, options = prompts_of([9])[0][None], dict(gen_length=32, block_length=16, steps=8, cache="dual")
    with cuda_graphs.use(mode):
        with torch.inference_mode():
            first = llada.generate.generate(random_llada, ids, **options)
        second = llada.generate.generate(random_llada, ids, **options)
    assert torch.equal(first.sequences, second.sequences)


def test_the_output_is_not_bound_to_inference_mode(random_llada):
    """Guards callers who write to an answer, or train on it: decoding runs in inference mode, its output does not."""
    output = llada.generate.generate(random_llada, prompts_of([9])[0][None], gen_length=16, block_length=16, steps=2)
    assert not any(value.is_inference() for value in output.values() if isinstance(value, torch.Tensor))
    output.sequences[:, 0] += 1
    logits = random_llada(output.sequences).logits
    logits.sum().backward()
    random_llada.zero_grad()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")
def test_what_a_recording_depends_on(random_llada):
    """Guards recordings that would go on with an adapter that was turned off, changed or merged, or without dropout."""
    from peft import LoraConfig, get_peft_model

    model = copy.deepcopy(random_llada)
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, config)
    adapted.add_adapter("other", config)
    cache = cuda_graphs.GraphedCache()
    seen = [cache._identity(model)]
    assert cache._identity(model) == seen[0]
    with adapted.disable_adapter():
        seen.append(cache._identity(model))
    adapted.set_adapter("other")
    seen.append(cache._identity(model))
    adapted.merge_adapter()
    seen.append(cache._identity(model))
    adapted.unmerge_adapter()
    seen.append(cache._identity(model.train()))
    model.eval().set_attn_implementation("eager")
    seen.append(cache._identity(model))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("kind", [cuda_graphs.ReusedCache, cuda_graphs.GraphedCache])
def test_old_buffers_are_freed_before_new_ones_are_made(random_llada, kind, monkeypatch):
    """Guards memory: otherwise a larger call would need room for both at once."""
    cache = kind()
    cache.fit(random_llada, 1, 64)
    cache.begin([0], 32)
    keys = torch.zeros(1, random_llada.kv_head_count, 32, random_llada.head_size)
    cache.write(0, 0, keys, keys)
    old = weakref.ref(cache.buffer.untyped_storage())
    allocate = kind.allocate

    def check(*arguments):
        assert old() is None
        return allocate(*arguments)

    monkeypatch.setattr(cache, "allocate", check)
    cache.fit(random_llada, 4, 2048)
    assert cache.buffer.shape[4] >= 2048


def test_many_short_rows_and_a_long_one_share_no_buffer(random_llada):
    """Guards memory: a call of 32 rows and one of 2048 slots must not leave room for 32 rows of 2048 slots."""
    cuda_graphs.forget()
    with cuda_graphs.use("on"):
        for rows, capacity in ((32, 100), (1, 2000)):
            with cuda_graphs.slot_cache(random_llada, rows, capacity) as cache:
                size = cache.buffer.shape[2] * cache.buffer.shape[4]
                assert size <= 2 * max(32 * cuda_graphs.CAPACITY_BUCKET, 2048)


def test_modes():
    """Guards the switch: off by itself on the CPU, and a wrong mode is refused."""
    with pytest.raises(ValueError, match="graphs is 'fast'; it must be one of auto, on, off"):
        with cuda_graphs.use("fast"):
            pass
