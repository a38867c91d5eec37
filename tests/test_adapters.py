"""LoRA adapters: what peft and gradient checkpointing need of the models, and adapters loaded, merged and refused.

    bash tests/run.sh tests/test_adapters.py
"""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import prompts_of
from peft import LoraConfig, get_peft_model
from torch import nn

from dpad.engine.transformer import MaskedDiffusionModel

FAMILIES = ("llada", "dream")


def tied(model: MaskedDiffusionModel) -> MaskedDiffusionModel:
    """A model of the same shape and other weights whose head is its embedding."""
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    return type(model)(config)


@pytest.fixture(params=[(family, is_tied) for family in FAMILIES for is_tied in (False, True)],
                ids=lambda value: value[0] + "-tied" * value[1])
def model(request, random_llada, random_dream) -> MaskedDiffusionModel:
    """A copy of its own for each test: peft changes the model that it is given."""
    family, is_tied = request.param
    recorded = {"llada": random_llada, "dream": random_dream}[family]
    return tied(recorded) if is_tied else copy.deepcopy(recorded)


# --- What training needs of the models --------------------------------------------------------------------------------


def test_the_head_is_known_and_can_be_replaced(model):
    """Guards peft and transformers, which ask for the head in order to leave it alone, to resize or to tie it."""
    ids = prompts_of([7])[0][None]
    head = model.get_output_embeddings()
    torch.testing.assert_close(model(ids).logits, model.hidden_states(ids, torch.arange(7)[None]) @ head.weight.T)
    assert (head is model.get_input_embeddings()) == model.config.tie_word_embeddings

    other = copy.deepcopy(head)
    nn.init.zeros_(other.weight)
    model.set_output_embeddings(other)
    assert model.get_output_embeddings() is other and not model(ids).logits.any()


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
@pytest.mark.parametrize("targets, count", [("all-linear", 7), (["q_proj", "v_proj"], 2)])
def test_peft_adapts_the_layers_and_leaves_the_head_alone(model, task_type, targets, count):
    """Guards `target_modules="all-linear"`: every projection of every layer, and nothing outside of them."""
    ids = prompts_of([7])[0][None]
    expected = model(ids).logits
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=targets, task_type=task_type))
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    prefix = next(name for name, module in model.named_modules() if module is model.layers)
    assert len(adapted) == count * model.layer_count and all(name.startswith(prefix + ".") for name in adapted)
    assert torch.equal(peft_model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, expected)


def gradients(model: nn.Module, ids: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(ids).logits.logsumexp(dim=-1).sum()
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in model.named_parameters()
                         if weight.grad is not None}


@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing")  # their names until transformers 6
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_checkpointing_changes_no_gradient(model, reentrant, lora):
    """Guards gradient checkpointing: each layer is computed again for the backward pass, with the same loss and
    gradients; also where the embedding is frozen, which reentrant checkpointing would take for no gradients at all."""
    trained = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)) if lora \
        else model
    calls = []
    model.layers[0].register_forward_pre_hook(lambda *_: calls.append("layer"))
    inner = next(module for name, module in model.layers[0].named_modules() if name.endswith("q_proj"))
    inner.register_forward_pre_hook(lambda *_: calls.append("inner"))
    ids = torch.stack(prompts_of([9, 9]))
    trained.train()
    loss, expected = gradients(trained, ids)
    assert calls.count("inner") == 1

    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    calls.clear()
    again, actual = gradients(trained, ids)
    assert calls.count("inner") == 2 and calls.count("layer") == 1
    assert again == loss and actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], gradient) for name, gradient in expected.items())

    calls.clear()
    trained.eval()  # decoding: nothing is kept, nothing is computed twice
    gradients(trained, ids)
    model.gradient_checkpointing_disable()
    trained.train()
    gradients(trained, ids)
    assert calls.count("inner") == 2
