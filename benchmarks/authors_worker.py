"""The authors' code, asked from outside: a process that decodes one answer for each line of JSON that it reads.

    PYTHON -B benchmarks/authors_worker.py      # authors.py starts it and writes to it

It imports nothing of this project, so that any Python with the packages of the authors' code runs it, and it changes
none of their files. It ends when its standard input does, whatever it is doing: with the process that started it.

The first line names the clone, the family and a checkpoint in the hub's layout; the reply describes what was loaded.
Every other line says how to decode a prompt; the reply has the answer's tokens and the seconds that it took. Where
anything fails, the reply is the last line of the error.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import queue
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

FUNCTIONS = {"none": "generate", "prefix": "generate_with_prefix_cache", "dual": "generate_with_dual_cache"}
PACKAGES = ("torch", "transformers", "numpy", "einops", "flash_attn")


# --- Their models -----------------------------------------------------------------------------------------------------


def load_llada(start: dict, device: Any, dtype: Any) -> tuple[Any, Callable[[dict, Any], Any]]:
    """Their LLaDA: the model, and a function that decodes a request's prompt [1, P]."""
    modules = {dpad: importlib.import_module(name)
               for dpad, name in ((False, "generate_baseline"), (True, "generate_dropout"))}
    functions = {(dpad, cache): getattr(module, name)
                 for dpad, module in modules.items() for cache, name in FUNCTIONS.items()}
    config = importlib.import_module("model.configuration_llada").LLaDAConfig.from_pretrained(start["checkpoint"])
    config.flash_attention = start["flash_attention"]
    model_class = importlib.import_module("model.modeling_llada").LLaDAModelLM
    model = model_class.from_pretrained(start["checkpoint"], config=config, torch_dtype=dtype).to(device).eval()

    def decode(request: dict, prompt: Any) -> Any:
        keywords = {
            "steps": request["steps"], "gen_length": request["gen_length"], "block_length": request["block_length"],
            "temperature": 0.0, "remasking": "low_confidence", "mask_id": request["mask_id"],
            "eos_id": request["eos_id"], "threshold": None, "early_termination": False,
        }
        if request["dpad"]:
            keywords.update(dropout="gaussian", preserved_tokens=0, **request["sampler"])
        return functions[request["dpad"], request["cache"]](model, prompt, **keywords)

    return model, decode


def load_dream(start: dict, device: Any, dtype: Any) -> tuple[Any, Callable[[dict, Any], Any]]:
    """Their Dream: the model, and a function that decodes a request's prompt [1, P]."""
    mixin = importlib.import_module("model.generation_utils_block").DreamGenerationMixin
    mixin.diffusion_generate  # noqa: B018  # an AttributeError where it is missing
    model_class = importlib.import_module("model.modeling_dream").DreamModel
    model = model_class.from_pretrained(start["checkpoint"], torch_dtype=dtype).to(device).eval()
    for name, function in vars(mixin).items():  # as their evaluation does: blocks instead of the model's own loop
        if isinstance(function, (types.FunctionType, staticmethod)):
            setattr(model, name, function.__get__(model))

    def decode(request: dict, prompt: Any) -> Any:
        sampler = request["sampler"] if request["dpad"] else {}
        return model.diffusion_generate(
            prompt, attention_mask=prompt.new_ones(prompt.shape), max_new_tokens=request["gen_length"],
            output_history=False, return_dict_in_generate=True, steps=request["steps"], temperature=0.0, top_p=None,
            top_k=None, alg="entropy", alg_temp=0.0, block_length=request["block_length"],
            use_cache=request["cache"] != "none", dual_cache=request["cache"] == "dual",
            dropout="gaussian" if request["dpad"] else "null", preserved_tokens=0, early_termination=False,
            eos=request["eos_id"], **sampler,
        )

    return model, decode


LOADERS = {"llada": load_llada, "dream": load_dream}


def check_weights(model: Any, checkpoint: str) -> None:
    """Raise ValueError unless the model holds the checkpoint's tensors, all of them and no others.

    from_pretrained only warns where a name is missing, and goes on with random numbers.
    """
    from safetensors import safe_open

    left = model.state_dict()
    for path in Path(checkpoint).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                tensor = left.pop(name, None)
                if tensor is None or not tensor.cpu().equal(file.get_tensor(name)):
                    raise ValueError(f"their model has not taken the weights {name}")
    if left:
        raise ValueError(f"their model has weights that the checkpoint has not: {next(iter(left))}")


class SamplersTorch:
    """torch for their sampler, which names the device "cuda" and draws on the device that it runs on.

    Here tensors are made on this run's device, and draws come from the CPU's generator, as this project's do: otherwise
    the two would keep different suffix positions on a GPU.
    """

    def __init__(self, device: Any) -> None:
        self.device = device

    def __getattr__(self, name: str) -> Any:
        import torch

        value = getattr(torch, name)
        if not isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
            return value

        def call(*arguments: Any, **keywords: Any) -> Any:
            if name in ("rand", "randperm"):
                return value(*arguments, **{**keywords, "device": "cpu"}).to(self.device)
            return value(*arguments, **({**keywords, "device": self.device} if "device" in keywords else keywords))

        return call


def patch_sampler(clone: str, device: Any) -> None:
    """Give every module `sampler` of theirs that was imported a torch of its own."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.rpartition(".")[2] == "sampler" and file and Path(clone).resolve() in Path(file).resolve().parents:
            module.torch = SamplersTorch(device)  # type: ignore[attr-defined]


# --- Requests ---------------------------------------------------------------------------------------------------------


def load(start: dict) -> tuple[dict, Callable[[dict], dict]]:
    """What the first line asks for: a description of what was loaded, and a function that answers the other lines."""
    import torch

    torch.set_num_threads(start["threads"])
    device = torch.device(start["device"])
    dtype = getattr(torch, start["dtype"])
    start["flash_attention"] = (  # as in their evaluation, where it can be
        start["family"] == "llada" and device.type == "cuda" and dtype != torch.float32
        and importlib.util.find_spec("flash_attn") is not None
    )
    sys.path[:0] = [str(Path(start["clone"], start["family"])), start["clone"]]
    model, decode = LOADERS[start["family"]](start, device, dtype)
    check_weights(model, start["checkpoint"])
    patch_sampler(start["clone"], device)

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def answer(request: dict) -> dict:
        prompt = torch.tensor([request["prompt"]], device=device)
        torch.manual_seed(request["seed"])
        synchronize()
        begin = time.perf_counter()
        output = decode(request, prompt)
        synchronize()
        seconds = time.perf_counter() - begin
        output = output[0] if isinstance(output, tuple) else output  # beside the number of forwards
        sequences = getattr(output, "sequences", output)
        return {"tokens": sequences[0, len(request["prompt"]) :].tolist(), "seconds": seconds}

    return describe(torch.get_num_threads(), start["flash_attention"]) | {"files": hashes(start["clone"])}, answer


def describe(threads: int, flash_attention: bool) -> dict:
    """What their code runs on, for the record."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {"python": platform.python_version(), **versions, "threads": threads, "flash_attention": flash_attention}


def hashes(clone: str) -> dict[str, str]:
    """SHA-256 of each file of theirs that was imported: what ran, also where there is no commit."""
    folder = Path(clone).resolve()
    names = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    paths = {Path(name).resolve() for name in names if name}
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(paths) if folder in path.parents and path.is_file()}  # torch names some that are none


def last_line(error: Exception, clone: str) -> str:
    """The last line of an error's traceback, after the last place in the clone that it went through."""
    line = traceback.format_exception_only(type(error), error)[-1].strip()
    inside = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(clone)]
    if not inside:
        return line
    return f"{os.path.relpath(inside[-1].filename, clone)}, line {inside[-1].lineno}: {line}"


def listen(requests: queue.Queue) -> None:
    """Pass lines on; at their end, which is also that of the process that writes them, end this one at once."""
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)


def send(replies: TextIO, reply: dict) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the other process, whose end is this one's
    here = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != here]
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what their code prints is no reply

    requests: queue.Queue = queue.Queue()
    threading.Thread(target=listen, args=(requests,), daemon=True).start()
    start = requests.get()
    try:
        reply, answer = load(start)
    except Exception as error:
        reply = {"error": last_line(error, start["clone"])}
    send(replies, reply)
    while "error" not in reply:
        try:
            reply = answer(requests.get())
        except Exception as error:
            reply = {"error": last_line(error, start["clone"])}
        send(replies, reply)
    os._exit(1)  # the other thread still waits for lines


if __name__ == "__main__":
    main()
