"""What LLaDA and Dream are made of: RMSNorm, RoPE by position id, attention over numbered slots, a strict loader.

Both models are the same bidirectional pre-norm transformer under different layer names. The names live in
`llada/network.py` and `dream/network.py`; everything that computes lives here. Imported, never run; to see it
at work: `python run.py generate -m tiny --prompt "Tom has 3 bags with 4 apples each. How many apples does he have?"`

Shapes: R rows of a batch, Q slots computed in this call (the queries), S slots attended to (the keys, S >= Q),
H heads, K key-value heads (K divides H), D head size, E model width, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from dpad.engine import checkpoint, process
from dpad.engine.checks import one_line, short
from dpad.engine.fused import PLAIN, Steps, rms_norm
from dpad.engine.products import multiply

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class RMSNorm(nn.Module):
    """`fused.rms_norm` with a weight [E]."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def rope_tables(position_ids: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation at each position, [R, 1, Q, D] in float32 (RoFormer, section 3.2.2).

    The angle depends on the position id alone, not on where the token stands in the sequence that the model sees.
    That is what lets DPad drop suffix tokens while the kept ones stay at their original distance.
    """
    halves = torch.arange(0, head_size, 2, device=position_ids.device, dtype=torch.float32)
    angles = position_ids[:, None, :, None].float() * theta ** (-halves / head_size)  # [R, 1, Q, D/2]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


class SlotCache:
    """Keys (after RoPE) and values of a block's slots, in buffers that are allocated once and written in place.

    A cache mode is only the answer to "which slots are recomputed at a step": those overwrite their entries, and
    queries attend to all `length` slots (DPad, section 4; Fast-dLLM's prefix and dual caches). A row that leaves
    a block keeps its slots behind those that stay, for a next block that does not recompute all of them.

    order: whose slots each row of the buffers has, by the numbers that `begin` was given. rows, length: of the block.
    stored: for each layer that has been written to, the keys and values of all of these, [R, K, length, D].
    """

    order: list[int]
    rows: int
    length: int
    stored: dict[int, tuple[Tensor, Tensor]]
    is_lasting = False

    def __init__(self, model: MaskedDiffusionModel, rows: int, capacity: int):
        self.buffer = self.allocate(model, rows, capacity)

    @staticmethod
    def allocate(model: MaskedDiffusionModel, rows: int, capacity: int) -> Tensor:
        """Room for keys and values, [layers, 2, R, K, capacity, D]."""
        shape = (model.layer_count, 2, rows, model.kv_head_count, capacity, model.head_size)
        with torch.inference_mode(False):  # it may serve a later call, which is not in that mode
            return torch.empty(shape, dtype=model.dtype, device=model.device)

    @property
    def buffers(self) -> Sequence[Tensor]:
        """All memory, in tensors [..., R, K, capacity, D]."""
        return (self.buffer,)

    def of_layer(self, layer: int) -> Tensor:
        """A layer's keys and values, [2, R, K, capacity, D]."""
        return self.buffer[layer]

    def begin(self, rows: Sequence[int], length: int, is_stale: bool = True, is_lasting: bool = False) -> None:
        """Start a block with these rows, by any numbers of their own, of `length` slots.

        is_stale: whatever the buffers held; else each row goes on with the slots that it had in the block before.
        is_lasting: a later block may go on with the slots of this one.
        """
        if is_stale:
            self.order = list(rows)
        self.is_lasting = True  # while rows take their places, those that are moved away are still needed
        self.keep(rows)
        self.is_lasting = is_lasting
        self.length = length

    def write(self, layer: int, start: int | Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [R, K, Q, D] at slots [start, start + Q) of a layer; return all its slots, [R, K, length, D]."""
        assert isinstance(start, int)
        if layer not in self.stored:
            slots = self.of_layer(layer)[:, : self.rows, :, : self.length]
            self.stored[layer] = slots[0], slots[1]
        all_keys, all_values = self.stored[layer]
        all_keys.narrow(2, start, keys.shape[2]).copy_(keys)
        all_values.narrow(2, start, keys.shape[2]).copy_(values)
        return all_keys, all_values

    def forward(self, model: MaskedDiffusionModel, inputs: Tensor, positions: Tensor, key_mask: Tensor | None,
                start: int, watch: Watch | None = None) -> Tensor:
        """The model's `hidden_states` of the slots [start, start + Q), which overwrite their entries."""
        return model.hidden_states(inputs, positions, key_mask, self, start, watch)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, in this order; each takes the place of the row that is in its own.

        Where the slots are lasting, that row gets its place in turn; otherwise it loses its slots.
        """
        for place, row in enumerate(rows):
            if self.order[place] == row:
                continue
            other = self.order.index(row)
            self.order[place], self.order[other] = row, self.order[place]
            for buffer in self.buffers:
                given = buffer[..., place, :, : self.length, :]
                taken = buffer[..., other, :, : self.length, :]
                moved = given.clone() if self.is_lasting else None
                given.copy_(taken)
                if moved is not None:
                    taken.copy_(moved)
        self.rows = len(rows)
        self.stored = {}

    def keep_slots(self, slots: Tensor) -> None:
        """Drop every slot but these (int64 [kept], ascending), which become the slots 0, 1, ..."""
        for buffer in self.buffers:
            kept = buffer[..., : self.rows, :, :, :].index_select(-2, slots.to(buffer.device))
            buffer[..., : self.rows, :, : len(slots), :] = kept
        self.length = len(slots)
        self.stored = {}


class SpreadCache(SlotCache):
    """The same for layers on several devices: each one's keys and values stay where it computes."""

    def __init__(self, model: MaskedDiffusionModel, rows: int, capacity: int):
        shape = (2, rows, model.kv_head_count, capacity, model.head_size)
        with torch.inference_mode(False):
            self.parts = [torch.empty(shape, dtype=model.dtype, device=device_of(layer)) for layer in model.layers]

    @property
    def buffers(self) -> Sequence[Tensor]:
        return self.parts

    def of_layer(self, layer: int) -> Tensor:
        return self.parts[layer]


class Watch(Protocol):
    """Looks at the attention of some queries in one forward: gets it layer by layer.

    queries: which of the forward's Q queries.
    """

    queries: slice

    def __call__(self, layer: int, weights: Tensor) -> None:
        """weights: float32 [R, H, watched queries, S], what each of them pays to each slot; a row's sum is 1."""


@dataclass
class Attention:
    """What the layers of one forward share: the rotation of the queries, and which slots they attend to.

    rope: cosines and sines, [R, 1, Q, D] each. key_mask: [R, 1, 1, S], True where a slot may be attended to, or what to
    add to the scores; None admits all. cache: with one the queries are its slots [start, start + Q), and the others
    come from its buffers. start: the first slot, or (in cuda_graphs.py) the slots themselves, int64 [Q].
    implementation: transformers' names, "sdpa" (torch's kernels) or "eager" (the textbook formula: the oracle, and the
    faster of the two for training in bfloat16 on a CPU). watch: gets the weights of some queries, which are computed
    for it by the textbook formula beside the layer's own output. steps: what the layers do between their products.
    copies: of the first two, for layers on other devices.
    """

    rope: tuple[Tensor, Tensor]
    key_mask: Tensor | None = None
    cache: SlotCache | None = None
    start: int | Tensor = 0
    implementation: str = "sdpa"
    watch: Watch | None = None
    steps: Steps = PLAIN
    copies: dict[torch.device, tuple[tuple[Tensor, Tensor], Tensor | None]] = field(default_factory=dict)

    def shared_on(self, device: torch.device) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """`rope` and `key_mask` on the device of a layer, copied there once."""
        if device == self.rope[0].device:
            return self.rope, self.key_mask
        if device not in self.copies:
            cos, sin = self.rope
            mask = None if self.key_mask is None else self.key_mask.to(device)
            self.copies[device] = (cos.to(device), sin.to(device)), mask
        return self.copies[device]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Bidirectional attention of Q queries [R, Q, H, D] to all slots, returned as [R, Q, H * D].

        layer: the layer's index, for the cache. keys, values: [R, Q, K, D], of the same slots as the queries.
        """
        queries, keys, values = (x.transpose(1, 2) for x in (queries, keys, values))  # [R, heads, Q, D]
        rope, key_mask = self.shared_on(queries.device)
        queries, keys = self.steps.rotate(queries, keys, *rope)
        if self.cache is not None:
            keys, values = self.cache.write(layer, self.start, keys, values)
        groups = queries.shape[1] // keys.shape[1]
        if self.watch is not None:
            watched = queries[:, :, self.watch.queries].float()
            self.watch(layer, _attention_weights(watched, keys.float(), key_mask, groups))
        if self.implementation == "eager":
            mixed = _textbook_attention(queries, keys, values, key_mask, groups)
        else:
            # Heads that share keys become more queries of one head: every query attends to the same slots, so any
            # kernel serves grouped-query attention, and none repeats keys.
            if groups > 1:
                queries = queries.unflatten(1, (-1, groups)).flatten(2, 3)  # [R, K, H / K * Q, D]
            mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=key_mask)
            if groups > 1:
                mixed = mixed.unflatten(2, (groups, -1)).flatten(1, 2)
        return mixed.transpose(1, 2).flatten(2)


def _textbook_attention(queries: Tensor, keys: Tensor, values: Tensor, key_mask: Tensor | None, groups: int) -> Tensor:
    """softmax(q k^T / sqrt(D)) v: queries [R, H, Q, D], keys and values [R, K, S, D] -> [R, H, Q, D]."""
    return _attention_weights(queries, keys, key_mask, groups) @ _repeat_heads(values, groups)


def _attention_weights(queries: Tensor, keys: Tensor, key_mask: Tensor | None, groups: int) -> Tensor:
    """softmax(q k^T / sqrt(D)): queries [R, H, Q, D], keys [R, K, S, D] -> [R, H, Q, S]."""
    scores = (queries * queries.shape[-1] ** -0.5) @ _repeat_heads(keys, groups).transpose(-1, -2)
    if key_mask is not None and key_mask.dtype == torch.bool:
        scores = scores.masked_fill(~key_mask, float("-inf"))
    elif key_mask is not None:
        scores = scores + key_mask
    return scores.softmax(dim=-1)


def _repeat_heads(x: Tensor, groups: int) -> Tensor:
    """Keys or values [R, K, S, D] for every head that shares them, [R, K * groups, S, D]."""
    return x.repeat_interleave(groups, dim=1) if groups > 1 else x


class Layer(nn.Module):
    """A layer `layer(x, attention, index)`: x [R, Q, E] -> [R, Q, E]. A subclass has it in `compute`.

    gradient_checkpointing: in training, compute the layer again for its gradients, and keep its input alone. The
    model's `gradient_checkpointing_enable` (transformers') sets it, and what to do it with.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def compute(self, x: Tensor, attention: Attention, index: int) -> Tensor:
        """What the layer makes of x; `index` is its own."""
        raise NotImplementedError

    def forward(self, x: Tensor, attention: Attention, index: int) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(self.compute, x, attention, index)
        return self.compute(x, attention, index)


class _Uninitialised(TorchFunctionMode):
    """Leaves out torch.nn.init: nobody uses what it makes, and on the meta device it imports torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor")
        return func(*args, **(kwargs or {}))


class MaskedDiffusionModel(nn.Module):
    """The forward pass that decoding.py needs, over layers that a subclass names as its checkpoints do.

    A subclass (`LLaDANetwork`) builds its modules and provides `embed(input_ids)`, `layers` (each a Layer),
    `final_norm` and the input embeddings. It sets `config_class`, which has transformers' names of sizes or aliases of
    them; `head_name` is the head's weight in a checkpoint, unless the head is the embedding. `prediction_offset` is 0
    where the logits of a position predict its own token (LLaDA) and 1 where they predict the next one (Dream).

    That is all that decoding takes. What transformers adds (`LLaDAModelLM`: generate, save_pretrained, device_map, ...)
    is in pretrained.py, since importing transformers' models takes longer than importing all else.
    """

    config_class: Any
    config: Any

    head_name: str
    prediction_offset: int = 0

    def __init__(self, config: PretrainedConfig):
        super().__init__()
        self.config = config
        config._attn_implementation = config._attn_implementation or "sdpa"
        process.prepare()

    def embed(self, input_ids: Tensor) -> Tensor:
        raise NotImplementedError

    def get_input_embeddings(self) -> nn.Embedding:
        raise NotImplementedError

    def set_input_embeddings(self, value: nn.Module) -> None:
        raise NotImplementedError

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of normalised hidden states [..., E], on their device."""
        output = self.get_output_embeddings()
        if not self.config.tie_word_embeddings:
            return output(hidden).to(hidden.device)
        with _weight_of(output) as weight:
            return multiply(hidden.to(weight.device), weight).to(hidden.device)

    @property
    def layers(self) -> nn.ModuleList:
        raise NotImplementedError

    @property
    def final_norm(self) -> nn.Module:
        raise NotImplementedError

    def hidden_states(
        self, inputs: Tensor, position_ids: Tensor, key_mask: Tensor | None = None,
        cache: SlotCache | None = None, start: int | Tensor = 0, watch: Watch | None = None, steps: Steps = PLAIN,
    ) -> Tensor:
        """The final normalised hidden states [R, Q, E] of what stands at `position_ids` [R, Q].

        inputs: token ids [R, Q], or embeddings [R, Q, E] in their place. key_mask: bool [R, S], True where a slot
        exists (False at padding). cache, start, watch, steps: see `Attention`.
        """
        rope = rope_tables(position_ids, self.head_size, self.rope_theta)
        if key_mask is not None:
            key_mask = key_mask[:, None, None, :]
            if key_mask.is_cuda:  # as the kernels take it: or else each layer would convert it
                key_mask = torch.zeros_like(key_mask, dtype=self.dtype).masked_fill_(~key_mask, float("-inf"))
        attention = Attention(rope, key_mask, cache, start, self.config._attn_implementation, watch, steps)
        x = inputs if inputs.is_floating_point() else self.embed(inputs)  # [R, Q, E]
        for index, layer in enumerate(self.layers):
            x = layer(x, attention, index)
        return steps.normalise(self.final_norm, x).to(position_ids.device)

    @property
    def device(self) -> torch.device:
        """Where decoding takes place: the device that the embedding computes on, wherever its weight is kept."""
        return device_of(self.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights that are plain numbers."""
        return next(weight.dtype for weight in self.parameters() if weight.is_floating_point())

    @property
    def layer_count(self) -> int:
        return len(self.layers)

    @property
    def kv_head_count(self) -> int:
        return self.config.num_key_value_heads

    @property
    def head_size(self) -> int:
        return self.config.hidden_size // self.config.num_attention_heads

    @property
    def rope_theta(self) -> float:
        return self.config.rope_theta

    @property
    def max_positions(self) -> int:
        """Tokens of the longest sequence, prompt and answer together."""
        return self.config.max_position_embeddings

    @property
    def is_dispatched(self) -> bool:
        """Whether accelerate moves weights or inputs (`device_map`): over several devices, the CPU or the disk."""
        return any(_hooks(module) for module in (self, self.get_input_embeddings(), *self.layers))

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding and of the head."""
        return getattr(self.config, "embedding_size", self.config.vocab_size)

    def get_output_embeddings(self) -> nn.Module:
        """The module whose weight [V, E] the head multiplies with: the embedding, where the two are tied."""
        if self.config.tie_word_embeddings:
            return self.get_input_embeddings()
        return self.get_submodule(self.head_name.removesuffix(".weight"))

    def set_output_embeddings(self, value: nn.Module) -> None:
        if self.config.tie_word_embeddings:
            self.set_input_embeddings(value)
        else:
            self.set_submodule(self.head_name.removesuffix(".weight"), value)

    @classmethod
    def without_weights(cls, config: PretrainedConfig) -> Self:
        """The modules of such a model, whose weights take no memory: on the meta device."""
        with torch.device("meta"), _Uninitialised():
            return cls(config)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, device: torch.device) -> Self:
        """The model of a checkpoint folder with plain weights, in safetensors, for decoding.

        On the CPU weights that are stored in `dtype` are not copied: they stay in the file, mapped into memory, and are
        read when they are first used. So the file must not be written to meanwhile; one that is replaced (which is how
        everything here writes) stays as it was.

        Raises:
            ValueError: the folder holds no configuration, has missing or foreign weights or wrong shapes.
        """
        config = cls.check_folder(folder)
        headers = checkpoint.read_headers(folder)
        checkpoint.check_types(folder, {name: header.dtype for name, header in headers.items()})
        model = cls.without_weights(config)
        weights: dict[str, Tensor] = {}
        try:
            size = sum(math.prod(header.shape) for header in headers.values()) * dtype.itemsize
            quiet = size < checkpoint.LARGE
            source = str(torch.empty(0, device=device).device) if device.type == "cuda" else "cpu"  # with its number
            with tqdm(desc="Loading weights", total=size, unit="B", unit_scale=True, disable=quiet) as bar:
                for path in sorted({header.path for header in headers.values()}):
                    with safe_open(path, framework="pt", device=source) as file:
                        for name in file.keys():
                            weights[name] = file.get_tensor(name).to(dtype).to(device)
                            bar.update(weights[name].nbytes)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"checkpoint {str(folder)!r} could not be loaded: {one_line(error)}") from error
        model.load_state_dict(weights, assign=True)  # the folder's names and shapes have been checked
        return model

    @classmethod
    def check_folder(cls, folder: Path, config: PretrainedConfig | None = None) -> PretrainedConfig:
        """The configuration of a checkpoint, or the one given in its place, once the weights' files fit it.

        Raises:
            ValueError: see `from_pretrained`; no weight is read.
        """
        checkpoint.check_folder(folder)
        fields = checkpoint.read_config(folder)
        if fields["model_type"] != cls.config_class.model_type:
            raise ValueError(f"checkpoint {str(folder)!r} is a {short(fields['model_type'])} model; this class loads "
                             f"{cls.config_class.model_type!r}")
        checkpoint.check_fields(folder, cls.config_class, fields)
        config = config or checkpoint.make_config(folder, cls.config_class, fields)
        checkpoint.check_weights(folder, cls.layout(folder, config), config)
        return config

    @classmethod
    def layout(cls, folder: Path, config: PretrainedConfig) -> checkpoint.Layout:
        """The weights of such a model: those of one with a single layer, made without taking memory, tell them all."""
        one_layer = copy.deepcopy(config)
        one_layer.num_hidden_layers = 1
        one_layer.quantization_config = None
        try:
            model = cls.without_weights(one_layer)
        except (RuntimeError, OverflowError) as error:  # products of sizes that no tensor can have
            raise ValueError(f"checkpoint {str(folder)!r} has a config.json of impossible sizes: "
                             f"{one_line(error)}") from error

        prefix = next(name for name, module in model.named_modules() if module is model.layers) + "."
        first = prefix + "0."
        shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
        outer = {name: shape for name, shape in shapes.items() if not name.startswith(first)}
        inner = {name.removeprefix(first): shape for name, shape in shapes.items() if name.startswith(first)}
        return checkpoint.Layout(outer, prefix, inner, config.num_hidden_layers, cls.head_name)


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes. accelerate's hooks bring it, or its inputs, there; without them it is its weights'."""
    for part in module.modules():
        for hook in _hooks(part):
            if getattr(hook, "execution_device", None) is not None:
                return torch.device(hook.execution_device)
    return next(module.parameters()).device


def _hooks(module: nn.Module) -> Sequence[Any]:
    """accelerate's hooks of a module."""
    hook = getattr(module, "_hf_hook", None)
    return () if hook is None else getattr(hook, "hooks", (hook,))


@contextmanager
def _weight_of(module: nn.Module) -> Iterator[Tensor]:
    """A module's weight outside of its own forward, brought to its device if it is kept elsewhere."""
    if not _hooks(module):
        yield cast(Tensor, module.weight)
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield cast(Tensor, module.weight)


def positions_of(attention_mask: Tensor | None, input_ids: Tensor) -> Tensor:
    """Position ids [R, Q] that count from each row's first token; padding gets 0 (nothing attends to it)."""
    rows, length = input_ids.shape
    if attention_mask is None:
        return torch.arange(length, device=input_ids.device).expand(rows, length)
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
