"""A stand-in for the models of the authors' code, and the plain loop that decodes with them.

For tests of benchmarks/against_authors.py. Written from the description of the algorithm alone, a position at a time
where that is simplest: it must not share code with what it is compared with.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

LLADA = {
    "embedding": "model.transformer.wte", "layer": "model.transformer.blocks", "attention_norm": "attn_norm",
    "q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "attn_out", "mlp_norm": "ff_norm", "gate": "ff_proj",
    "up": "up_proj", "down": "ff_out", "norm": "model.transformer.ln_f", "head": "model.transformer.ff_out",
    "layers": "n_layers", "heads": "n_heads", "kv_heads": "n_kv_heads",
}
DREAM = {
    "embedding": "model.embed_tokens", "layer": "model.layers", "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
    "norm": "model.norm", "head": "lm_head", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
}


class Config:
    def __init__(self, fields):
        self.fields = fields

    @classmethod
    def from_pretrained(cls, folder):
        return cls(json.loads((Path(folder) / "config.json").read_text()))


class Model:
    """Logits of some slots, which attend to all slots that there are keys and values of."""

    names: dict = {}

    def __init__(self, weights, fields):
        self.weights, self.fields = weights, fields

    @classmethod
    def from_pretrained(cls, folder, config=None, torch_dtype=None):
        weights = load_file(Path(folder) / "model.safetensors")
        return cls(weights, (config or Config.from_pretrained(folder)).fields)

    def to(self, device):
        return self

    def eval(self):
        return self

    def state_dict(self):
        return dict(self.weights)

    def linear(self, name, x):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, name, x):
        eps = self.fields["rms_norm_eps"]
        return self.weights[f"{name}.weight"] * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()

    def rotate(self, x, positions):
        half = x.shape[-1] // 2
        rates = self.fields["rope_theta"] ** (-torch.arange(half) / half)
        angles = positions[:, None, None] * rates
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()],
                         -1)

    def forward(self, ids, positions, slots, store):
        """ids [n], positions [n] of all slots; slots: which are computed; store: keys and values by layer, or {}."""
        names, fields = self.names, self.fields
        x = self.weights[f"{names['embedding']}.weight"][ids[slots]]
        for layer in range(fields[names["layers"]]):
            at = {name: f"{names['layer']}.{layer}.{names[name]}" for name in
                  ("attention_norm", "q", "k", "v", "out", "mlp_norm", "gate", "up", "down")}
            heads, kv_heads = fields[names["heads"]], fields[names["kv_heads"]]
            y = self.norm(at["attention_norm"], x)
            q = self.rotate(self.linear(at["q"], y).unflatten(-1, (heads, -1)), positions[slots])
            k = self.rotate(self.linear(at["k"], y).unflatten(-1, (kv_heads, -1)), positions[slots])
            v = self.linear(at["v"], y).unflatten(-1, (kv_heads, -1))
            keys, values = store.setdefault(layer, (torch.zeros(len(ids), *k.shape[1:]),
                                                    torch.zeros(len(ids), *v.shape[1:])))
            keys[slots], values[slots] = k, v
            mixed = []
            for head in range(heads):
                group = head // (heads // kv_heads)
                scores = q[:, head] @ keys[:, group].T / math.sqrt(q.shape[-1])
                mixed.append(scores.softmax(-1) @ values[:, group])
            x = x + self.linear(at["out"], torch.cat(mixed, -1))
            y = self.norm(at["mlp_norm"], x)
            x = x + self.linear(at["down"], F.silu(self.linear(at["gate"], y)) * self.linear(at["up"], y))
        return self.linear(names["head"], self.norm(names["norm"], x))


@torch.no_grad()
def decode(model, prompt, steps, gen_length, block_length, cache, sampler, rule):
    """The prompt and its answer, [1, P + G]. rule: says which tokens a step decodes."""
    mask = model.fields["mask_token_id"]
    sequence = torch.cat([prompt[0], torch.full((gen_length,), mask)])
    first_block, end = prompt.shape[1], len(sequence)
    steps = steps // (gen_length // block_length)
    for start in range(first_block, end, block_length):
        stop = start + block_length
        suffix = torch.arange(stop, end)
        positions = torch.cat([torch.arange(stop), suffix if sampler is None else sampler.sample(suffix)])
        store: dict = {}
        for step in rule.steps(steps, cache):
            opening = step == rule.steps(steps, cache)[0]
            if opening or cache == "none":
                slots = torch.arange(len(positions))
            else:
                slots = torch.arange(start, len(positions) if cache == "prefix" else stop)
            logits = model.forward(sequence[positions], positions, slots, store)
            place = start - int(slots[0])
            rule.unmask(sequence, logits, start, stop, place, step, steps, mask)
    return sequence[None]


class LLaDARule:
    """The most confident masked positions of the block, the same number at each step."""

    @staticmethod
    def steps(steps, cache):
        return list(range(steps))

    @staticmethod
    def unmask(sequence, logits, start, stop, place, step, steps, mask):
        probabilities = logits[place : place + stop - start].double().softmax(-1)
        confidence, tokens = probabilities.max(-1)
        confidence[sequence[start:stop] != mask] = -1
        count = (stop - start) // steps + (step < (stop - start) % steps)
        for position in confidence.topk(count).indices.tolist():
            sequence[start + position] = tokens[position]


class DreamRule:
    """Logits predict the next position. By entropy, with a schedule of times; a cache's first forward decodes one."""

    @staticmethod
    def steps(steps, cache):
        return list(range(0 if cache != "none" else 1, max(steps, 2)))

    @staticmethod
    def unmask(sequence, logits, start, stop, place, step, steps, mask):
        logits = torch.cat([logits[:1], logits[:-1]])[place : place + stop - start]
        tokens = logits.argmax(-1)
        if step == 0:
            sequence[start] = tokens[0]
            return
        probabilities = logits.softmax(-1)
        confidence = (probabilities * (probabilities + 1e-10).log()).sum(-1)
        masked = sequence[start:stop] == mask
        confidence[~masked] = -torch.inf
        times = torch.linspace(1, 1e-3, steps + 1)
        left = int(masked.sum())
        count = left if step >= steps - 1 else int(left * (1 - times[step + 1] / times[step]))
        for position in confidence.topk(count).indices.tolist():
            sequence[start + position] = tokens[position]
