"""The limits that an operator sets for a server. Each is a setting: a flag of run.py serve, a key of ray.yaml's args.

    python run.py serve -m tiny --max_tokens 512 --max_queue 64

Imported, never run; standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

from dpad.engine.fields import check_settings, setting


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server takes on, and how long it waits.

    Raises:
        ValueError: naming the limit, its value and what is allowed.
    """

    max_batch: int = setting(32, "prompts decoded together", minimum=1)
    batch_wait: float = setting(5.0, "how long a prompt waits for others when nothing is decoded", minimum=0,
                                maximum=10_000, unit="milliseconds")
    max_queue: int = setting(256, "prompts that are received, wait, are decoded or are sent at the same time; others "
                             "get status 429", minimum=1)
    max_tokens: int = setting(1024, "longest answer that a request may ask for", minimum=1, unit="tokens")
    max_prompt: int | None = setting(None, "longest prompt (default: what the model has room for)", minimum=1,
                                     unit="tokens")
    max_body: int = setting(2**20, "largest request; others get status 413", minimum=64, unit="bytes")
    timeout: float = setting(600.0, "from a request to the end of its answer", above=0, maximum=10**6, unit="seconds")
    patience: float = setting(30.0, "for a client that sends its request or reads its answer slowly", above=0,
                              maximum=10**6, unit="seconds")
    grace: float = setting(30.0, "when the server is ended: for the answers that are being decoded", minimum=0,
                           maximum=10**6, unit="seconds")

    def __post_init__(self) -> None:
        check_settings(self)
