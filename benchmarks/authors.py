"""The authors' code in a process of its own: started with a model's weights, then asked for one answer at a time.

    with start(clone, python, subject) as authors:
        authors.versions                     # of the packages that their code runs on
        reply = authors.decode("+DPad", {...})      # {"tokens": [...], "seconds": ...}

authors_worker.py is that process; `compare` starts it and measures this project beside it. Imported by
against_authors.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import measurement
from benchmarks.measurement import Subject
from benchmarks.progress import Progress
from benchmarks.rooflines import ObservedModel, Products, timed
from benchmarks.workload import Workload
from dpad.engine import cuda_graphs, products
from dpad.engine.checks import one_line
from dpad.engine.configurations import Configuration
from dpad.engine.settings import TokenIds
from dpad.results.files import write_json

WORKER = Path(__file__).with_name("authors_worker.py")
PATIENCE = 10.0  # seconds for the process to end
LOGIT_SCALE = 4.0  # see make_decisive
MAX_ERROR = 2**16  # bytes at the end of what the process writes to standard error

# By family: what of their code is imported, and what the config.json on the hub says beyond this project's own.
FILES = {
    "llada": ("llada/generate_baseline.py", "llada/generate_dropout.py", "llada/model/configuration_llada.py",
              "llada/model/modeling_llada.py"),
    "dream": ("dream/model/generation_utils_block.py", "dream/model/modeling_dream.py"),
}
HUB_FIELDS: dict[str, dict[str, Any]] = {
    "llada": {
        "activation_type": "silu", "alibi": False, "alibi_bias_max": 8.0, "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0, "attention_layer_norm": False, "attention_layer_norm_with_affine": True,
        "bias_for_layer_norm": False, "block_group_size": 1, "block_type": "llama", "embedding_dropout": 0.0,
        "flash_attention": False, "init_cutoff_factor": None, "init_device": "cpu", "init_fn": "mitchell",
        "layer_norm_type": "rms", "layer_norm_with_affine": True, "multi_query_attention": None,
        "precision": "amp_bf16", "residual_dropout": 0.0, "rope": True, "rope_full_precision": True,
        "use_cache": False,
    },
    "dream": {
        "architectures": ["DreamModel"], "attention_dropout": 0.0, "hidden_act": "silu", "max_window_layers": 28,
        "rope_scaling": None, "sliding_window": None, "use_cache": False, "use_sliding_window": False,
    },
}


class AuthorsError(Exception):
    """Their code cannot be used as it is expected to be: a sentence that ends with the last line of the error."""


class Authors:
    """Their code, loaded. versions: of what it runs on, and with how many threads."""

    def __init__(self, process: subprocess.Popen, errors: Any, family: str) -> None:
        self.process = process
        self.errors = errors
        self.family = family
        self.versions: dict[str, Any] = {}

    def decode(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """An answer's `tokens` and `seconds`. name: of the setting, for the message of an error.

        Raises:
            AuthorsError: their code fails.
        """
        return self.ask(request, f"decode {name} with {self.family}")

    def ask(self, request: dict[str, Any], what: str) -> dict[str, Any]:
        """The reply to a request; what: it asks for, for the message of an error."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        reply = json.loads(line) if line else {"error": self._last_words()}
        if "error" in reply:
            raise AuthorsError(f"the authors' code cannot {what}: {one_line(reply['error'], 1000)}")
        return reply

    def _last_words(self) -> str:
        """How a process without a reply has ended, and what it left on standard error."""
        status = self.process.wait()
        self.errors.seek(max(self.errors.seek(0, os.SEEK_END) - MAX_ERROR, 0))
        lines = self.errors.read().decode(errors="replace").split("\n")
        last = next((f": {line}" for line in reversed(lines) if line.strip()), "")
        return f"its process ended with status {status}{last}"


def check_clone(clone: Path, family: str) -> None:
    """Raise AuthorsError where a file of the family that is needed is missing."""
    missing = [name for name in FILES[family] if not (clone / name).is_file()]
    if missing:
        raise AuthorsError(f"{clone} is not as the authors' code is expected to be: it has no {', '.join(missing)}")


@contextmanager
def start(clone: Path, python: str, subject: Subject) -> Iterator[Authors]:
    """Load a subject's weights into the authors' model, in another process, which ends with this context.

    Args:
        clone: an absolute path. python: the program that runs their code.

    Raises:
        AuthorsError: their code cannot be loaded.
    """
    family = subject.family.package
    check_clone(clone, family)
    threads = torch.get_num_threads()
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    environment.pop("PYTHONPATH", None)  # this project's modules have the names of theirs
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                [python, "-B", str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                cwd=clone / family, env=environment,
            )
        except OSError as error:
            raise AuthorsError(f"{python} cannot be started: {error.strerror}") from None
        try:
            authors = Authors(process, errors, family)
            with tempfile.TemporaryDirectory(prefix="dpad-against-authors-") as checkpoint:
                write_checkpoint(subject, Path(checkpoint))
                authors.versions = authors.ask({
                    "clone": str(clone), "family": family, "checkpoint": checkpoint, "threads": threads,
                    "device": str(subject.model.device), "dtype": str(subject.model.dtype).removeprefix("torch."),
                }, f"load {family} with {python} (docs/speed.md says what it needs)")
            yield authors
        finally:
            end(process)


def end(process: subprocess.Popen) -> None:
    """End the process: at once, as it does when its standard input ends, or by force."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.close()
    except BrokenPipeError:
        pass
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        process.stdout.close()


def write_checkpoint(subject: Subject, folder: Path) -> None:
    """Write the weights and their configuration as the hub has them, for readers of any version of transformers."""
    config = subject.model.config.to_diff_dict()
    dtype = str(subject.model.dtype).removeprefix("torch.")
    tokens = {name: value for name, value in config.items() if name.endswith("token_id")}
    write_json(folder / "config.json", config | HUB_FIELDS[subject.family.package] | {"torch_dtype": dtype})
    write_json(folder / "generation_config.json", {"_from_model_config": True, **tokens})
    weights = {name: tensor.contiguous() for name, tensor in subject.model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def find_python(name: str) -> str:
    """The path of a program, which links are not followed from: a virtual environment is known by its link.

    Raises:
        ValueError: there is none.
    """
    found = shutil.which(name)
    if found is None:
        raise ValueError(f"--their_python is {name!r}; it must be a Python that can be started")
    return os.path.abspath(found)


# --- This project beside it -------------------------------------------------------------------------------------------


def compare(clone: Path, python: str, shape: str, device: str, dtype: str, rows: Mapping[str, Configuration],
            work: Workload, repeats: int, progress: Progress) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Load random weights of a shape into both, and `measure` them; also the versions that their code runs on.

    Raises:
        AuthorsError: their code cannot be loaded, or fails. ValueError: see `make_subject`.
    """
    subject = measurement.make_subject(shape, device, dtype)
    make_decisive(subject)
    with start(clone, python, subject) as authors:
        return measure(authors, subject, rows, work, repeats, progress), authors.versions


def measure(authors: Authors, subject: Subject, rows: Mapping[str, Configuration], work: Workload, repeats: int,
            progress: Progress) -> list[dict[str, Any]]:
    """Decode with both in turn, `repeats` times, after a first run of each.

    Args:
        authors: loaded with the weights of `subject`.

    Returns:
        A row of the record for each configuration: its settings; seconds, one number a repeat: `theirs_s`, `ours_s`,
        `floor_s` (the roofline) and `torch_floor_s` (the same, by the library that torch multiplies weights with);
        medians of their time over each of the three: `ratio`, `allowed` and `allowed_by_torch`; `equal_tokens`, how
        many tokens of the answer are the same in every run, and `first_difference`, the place of the first other one,
        from 0 (None: there is none).

    Raises:
        AuthorsError: their code fails.
    """
    device = subject.model.device
    roofline = Products(subject.model)
    forwards = {}
    equal = {}
    results: dict[str, dict[str, Any]] = {}
    for name, configuration in rows.items():
        progress.announce(f"{subject.name}, {name}: first run")
        observed = ObservedModel(subject.model)
        with cuda_graphs.use("off"):
            output = measurement.run(subject, configuration, work, model=observed)
        for _ in range(2 if device.type == "cuda" else 0):  # graphs are recorded, then replayed
            output = measurement.run(subject, configuration, work)
        reply = authors.decode(name, request_of(subject, configuration, work))
        forwards[name] = observed.forwards
        equal[name] = equal_tokens(output.sequences, reply, work)
        results[name] = {
            "model": subject.name, "family": subject.family.package, "name": name, "dpad": configuration.dpad,
            "cache": configuration.cache, "forwards": len(observed.forwards), "theirs_s": [], "ours_s": [],
            "floor_s": [], "torch_floor_s": [],
        }
        progress.advance()

    for repeat in range(1, repeats + 1):
        progress.announce(f"{subject.name}: timing every row, {repeat} of {repeats}")
        for name, configuration in rows.items():
            reply = authors.decode(name, request_of(subject, configuration, work))
            outputs: list[Tensor] = []
            ours = timed(device, lambda row, kept: kept.append(measurement.run(subject, row, work).sequences),
                         configuration, outputs)
            equal[name] &= equal_tokens(outputs[0], reply, work)
            results[name]["theirs_s"].append(reply["seconds"])
            results[name]["ours_s"].append(ours)
            results[name]["floor_s"].append(roofline.seconds(forwards[name]))
            with products.use("off"):
                results[name]["torch_floor_s"].append(roofline.seconds(forwards[name]))
            progress.advance()

    for name, result in results.items():
        different = (~equal[name]).nonzero().flatten().tolist()
        result["ratio"] = measurement.median_quotient(result["theirs_s"], result["ours_s"])
        result["allowed"] = measurement.median_quotient(result["theirs_s"], result["floor_s"])
        result["allowed_by_torch"] = measurement.median_quotient(result["theirs_s"], result["torch_floor_s"])
        result["equal_tokens"] = int(equal[name].sum())
        result["first_difference"] = different[0] if different else None
    return list(results.values())


def request_of(subject: Subject, configuration: Configuration, work: Workload) -> dict[str, Any]:
    """What asks the authors' code for the answer that `measurement.run` gives."""
    tokens = TokenIds.of(subject.model)
    settings = measurement.decoding_settings(subject.family, configuration, work)
    return {
        "prompt": measurement.prompt_of(subject, work)[0].tolist(), "dpad": configuration.dpad,
        "cache": configuration.cache, "steps": settings.steps, "gen_length": work.gen_length,
        "block_length": work.block_length, "mask_id": tokens.mask, "eos_id": tokens.eos, "seed": work.seed,
        "sampler": {"sigma": work.sampler.k_sigma, "scale": work.sampler.scale, "window": work.sampler.window},
    }


def equal_tokens(sequences: Tensor, reply: dict[str, Any], work: Workload) -> Tensor:
    """Which tokens of the answers are the same: bool [G].

    Raises:
        AuthorsError: theirs is of another length.
    """
    theirs = torch.tensor(reply["tokens"])
    if len(theirs) != work.gen_length:
        raise AuthorsError(f"the authors' code gives an answer of {len(theirs)} tokens where {work.gen_length} were "
                           "asked for")
    return sequences[0, work.prompt_length :].cpu() == theirs


def make_decisive(subject: Subject) -> None:
    """Scale the head of random weights so that rounding decides no token, and forbid the mask and EOS.

    Logits get a standard deviation of LOGIT_SCALE instead of about 0.5, at which the entropies of positions are equal
    to five digits. Those of the mask and of EOS become 0, and so never the largest: this project decodes no mask, and
    in the timed rows no EOS; the authors' code does, and may then not end.
    """
    tokens = TokenIds.of(subject.model)
    layer: Any = subject.model.get_output_embeddings()
    head = layer.weight  # [V, d]
    with torch.no_grad():
        head *= LOGIT_SCALE / (head.float().std() * head.shape[1] ** 0.5)
        head[[tokens.mask, tokens.eos]] = 0
