"""The embedded models: shapes, tokenizers, and the card that tells how one was trained. train.py makes them.

Imported, never run; `python -m dpad.training.train --output checkpoints/llada-tiny --card` renews a card.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import dream
import llada
from dataset import arithmetic
from dpad.engine.transformer import MaskedDiffusionModel
from dpad.results import records

# LLaDA's special tokens, in the order of their ids here (on the hub they sit at 126080 and above).
LLADA_TOKENS = {
    "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "mask_token": "<|mdm_mask|>",
    "start_header": "<|start_header_id|>", "end_header": "<|end_header_id|>", "end_of_turn": "<|eot_id|>",
}
LLADA_CHAT = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
DREAM_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 1024
# What BPE may merge within. A capital begins a piece, without the space before it: a name is then the same token at the
# start of a line and inside one, and copying it is one thing to learn instead of one for each name. A number up to 99
# is one token: were it one or two, a model that decodes in any order would have to guess where all behind it stands.
PIECES = r"<<|>>|####|\d{1,2}|[A-Z][a-z]*| ?[a-z]+|\n| ?[^A-Za-z\d\s<>#]|\s"
# RoPE's base and the spread of the initial weights suit this width and these lengths, not the 8B's.
LLADA_SHAPE = {
    "d_model": 192, "n_layers": 6, "n_heads": 4, "mlp_hidden_size": 512, "rope_theta": 10_000.0, "init_std": 0.07,
}
DREAM_SHAPE = {
    "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 544, "rope_theta": 10_000.0, "initializer_range": 0.07,
}
MAX_POSITIONS = 4096


def make(family: str, seed: int) -> tuple[MaskedDiffusionModel, PreTrainedTokenizerBase]:
    """A model of random weights and its tokenizer; family: a key of FAMILIES."""
    tokenizer, model_class, config = FAMILIES[family](seed)
    model = model_class._from_config(config, attn_implementation="eager")
    let_attention_copy(model)
    return model, tokenizer


@torch.no_grad()
def let_attention_copy(model: MaskedDiffusionModel) -> None:
    """Choose initial weights with which a head only has to learn where to look in order to copy a token.

    From independent random weights it would have to learn that, what to read there and what to write, each of no use
    without the others; in so few steps names were never copied. So embeddings are as large as what layers add to them
    (a token's identity stays readable in every layer), the model's head begins as the same vectors, and each attention
    head's output projection as the transpose of its value projection: what is attended to adds to its own logit. (The
    last is from Trockman and Kolter, "Mimetic initialization of self-attention layers", 2023.)
    """
    embedding = model.get_input_embeddings().weight
    head = next(m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == len(embedding))
    head.weight.copy_(embedding)
    embedding /= embedding.std()
    for layer in model.layers:
        attention = getattr(layer, "self_attn", layer)  # Dream's, LLaDA's
        output = attention.o_proj if attention is not layer else attention.attn_out
        values = attention.v_proj.weight.unflatten(0, (model.kv_head_count, model.head_size))  # [K, D, E]
        values = values.repeat_interleave(output.in_features // model.head_size // model.kv_head_count, dim=0)
        output.weight.copy_(values.flatten(0, 1).T)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer as the hub's checkpoints of its family have it."""
    tokenizer.save_pretrained(folder)
    if isinstance(tokenizer, dream.DreamTokenizer):  # vocab.json and merges.txt, and no tokenizer.json
        tokenizer.backend_tokenizer.model.save(str(folder))
        (folder / "tokenizer.json").unlink()
        # As on the hub, what is in neither of them (special tokens, whole numbers) stands in the configuration.
        file = folder / "tokenizer_config.json"
        fields = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        added = {str(number): {field: getattr(token, field) for field in fields}
                 for number, token in sorted(tokenizer.added_tokens_decoder.items())}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"added_tokens_decoder": added}, indent=2) + "\n")


def train_bpe(pattern: str, special_tokens: list[str], vocabulary: int, seed: int) -> Tokenizer:
    """Byte-level BPE of `vocabulary` tokens, trained on the training problems; `pattern` splits text beforehand."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special_tokens, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    samples = islice(arithmetic.problems(seed, "train"), 20_000)
    extra = ["Question: ", "\nAnswer:", "user", "assistant", "system"] * 1000
    tokenizer.train_from_iterator([*(p["question"] + "\n" + p["answer"] for p in samples), *extra], trainer)
    return tokenizer


def _llada(seed: int):
    bpe = train_bpe(PIECES, list(LLADA_TOKENS.values()), VOCABULARY, seed)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, chat_template=LLADA_CHAT, model_max_length=MAX_POSITIONS,
        padding_side="left", pad_token=LLADA_TOKENS["eos_token"],
        additional_special_tokens=[LLADA_TOKENS[name] for name in ("start_header", "end_header", "end_of_turn")],
        **{name: LLADA_TOKENS[name] for name in ("bos_token", "eos_token", "mask_token")},
    )
    return tokenizer, llada.LLaDAModelLM, llada.LLaDAConfig(
        **LLADA_SHAPE, vocab_size=VOCABULARY, max_sequence_length=MAX_POSITIONS,
        mask_token_id=tokenizer.mask_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eot_id=tokenizer.convert_tokens_to_ids(LLADA_TOKENS["end_of_turn"]),
    )


def _dream(seed: int):
    # No merge crosses a piece, though Qwen's pattern cuts fewer; it cuts digits apart, so numbers are added as a whole.
    numbers = [str(number) for number in range(10, 100)]
    bpe = train_bpe(PIECES.replace(r"\d{1,2}", r"\d"), [], VOCABULARY - 8 - len(numbers), seed)
    parts = json.loads(bpe.to_str())["model"]
    tokenizer = dream.DreamTokenizer(
        vocab=parts["vocab"], merges=[tuple(pair) for pair in parts["merges"]], chat_template=DREAM_CHAT,
        model_max_length=MAX_POSITIONS, padding_side="left",
    )
    tokenizer.add_tokens([AddedToken(number, normalized=False) for number in numbers])
    return tokenizer, dream.DreamModel, dream.DreamConfig(
        **DREAM_SHAPE, vocab_size=VOCABULARY, max_position_embeddings=MAX_POSITIONS,
        mask_token_id=tokenizer.mask_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
    )


FAMILIES = {"llada": _llada, "dream": _dream}


# --- The card --------------------------------------------------------------------------------------------------------

CARD = """\
# {name}: a small {family} for machines without a GPU

{parameters:.2f} million parameters ({shape};
bfloat16), a byte-level BPE vocabulary of {vocabulary} tokens in which every number up to 99 is a token and so is every
name, and {family}'s chat template. It solves the word problems that `dataset/arithmetic.py` writes, one to four steps
in whole numbers up to 99, and nothing else. It is here so that everything in this repository runs, and can be tested,
offline.

    python run.py generate -m {short} --prompt "Tom has 3 bags with 4 apples each. How many apples does Tom have?"

## Training

Random initial weights; problems of the train split, generated as they are needed (those of the test split share no
story with the same numbers). {steps} steps of about {tokens} tokens, {hours:.1f} hours in all, on {hardware}.
{restarts}

{commands}

![curve](curve.png)

| step | minutes | loss | held-out loss | held-out accuracy of masked tokens |
| ---: | ---: | ---: | ---: | ---: |
{rows}

The accuracy counts every masked token but EOS, under all levels of noise; with most of an answer masked, much of it can
not be known.

## Accuracy on fresh problems

Test problems that are not in the training data.

{table}
"""


ONE_RUN = "Data, loss and schedule: see `train.py`. One command:"
RESUMED_RUN = """\
Data, loss and schedule: see `train.py`. The run was interrupted and went on from its saved state, which changes nothing
(a resumed run has the losses of one without a break), nor does the number of processes. The parts:"""
SEVERAL_RUNS = """\
Data, loss and schedule: see `train.py`. The run was interrupted, and went on with other settings or code, so no single
command repeats it: each part began with the weights and optimizer state of the one before, at the commit named behind
it. The parts:"""


def write_card(folder: Path) -> None:
    """README.md and curve.png of a checkpoint, from its train.jsonl, config.json and records.json alone."""
    entries = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    runs = [entry for entry in entries if "command" in entry]
    curve = [entry for entry in entries if "loss" in entry]
    config = AutoConfig.from_pretrained(folder)  # both families answer to the standard names
    machine = runs[-1]["environment"]["hardware"]
    cores = runs[-1]["processes"] * machine["threads"]
    shown = curve[:: max(1, len(curve) // 12)]
    shown += [] if shown[-1] is curve[-1] else [curve[-1]]
    records_file = folder / "records.json"
    table = accuracy_table(records.load([records_file])) if records_file.exists() else "Not measured yet."
    (folder / "README.md").write_text(CARD.format(
        name=folder.name, family={"llada": "LLaDA", "Dream": "Dream"}[config.model_type],
        short={"llada": "tiny", "Dream": "dream-tiny"}[config.model_type],
        parameters=runs[0]["parameters"] / 1e6, vocabulary=config.vocab_size,
        shape=f"{config.num_hidden_layers} layers, width {config.hidden_size}, {config.num_attention_heads} heads on "
              f"{config.num_key_value_heads} keys and values, SwiGLU of {config.intermediate_size}",
        steps=curve[-1]["step"], tokens=runs[0]["settings"]["tokens_per_step"], hours=curve[-1]["seconds"] / 3600,
        hardware=f"{cores} core{'s' * (cores > 1)} of an {machine['processor']}", table=table,
        restarts=ONE_RUN if len(runs) == 1 else RESUMED_RUN if one_recipe(runs) else SEVERAL_RUNS,
        commands="\n".join(f"    {run['command']}    # from step {run['from_step']}, commit "
                           f"{run['environment']['commit']}" for run in runs),
        rows="\n".join(f"| {e['step']} | {e['seconds'] / 60:.0f} | {e['loss']:.3f} | {e['held_out_loss']:.3f} | "
                       f"{100 * e['held_out_accuracy']:.1f} % |" for e in shown),
    ))
    draw_curve(curve, folder / "curve.png")


def accuracy_table(records: list[dict]) -> str:
    """Accuracy alone, by answer length: several evaluations shared the machine, so their times would mislead."""
    lines = ["| G | decoding | problems | flexible | strict |", "| ---: | --- | ---: | ---: | ---: |"]
    for record in records:
        cells = [f"{100 * score['value']:.1f} % ± {100 * score['stderr']:.1f}"
                 for score in (record["metrics"][name] for name in ("flexible-extract", "strict-match"))]
        lines.append(f"| {record['settings']['gen_length']} | {record['name']} | {record['samples']} | "
                     f"{' | '.join(cells)} |")
    return "\n".join([*lines, "", "± is the standard error. " + ", ".join(
        f"`{record['command']}`" for record in records) + f" at commit {records[0]['environment']['commit']}."])


def one_recipe(runs: list[dict]) -> bool:
    """Whether all parts of a run had the same settings and code, so that its first command alone repeats it."""
    recipes = [
        ({name: value for name, value in run["settings"].items() if name not in ("resume", "threads")},
         run["environment"]["commit"]) for run in runs
    ]
    return all(recipe == recipes[0] for recipe in recipes)


def draw_curve(curve: list[dict], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without pyplot: no window system, no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    steps = [entry["step"] for entry in curve]
    left.plot(steps, [entry["loss"] for entry in curve], color="#E69F00", label="training")
    left.plot(steps, [entry["held_out_loss"] for entry in curve], color="#0072B2", label="held out")
    left.set(xlabel="step", ylabel="masked-diffusion loss", yscale="log")
    left.legend(frameon=False)
    right.plot(steps, [100 * entry["held_out_accuracy"] for entry in curve], color="#0072B2")
    right.set(xlabel="step", ylabel="held-out masked tokens right (%)", ylim=(0, 100))
    for axes in (left, right):
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


