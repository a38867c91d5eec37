"""What a server counts, in Prometheus's text format: requests, latencies, tokens, batches, and what waits.

Imported by app.py, never run; needs prometheus_client (dpad/serve/requirements.txt).
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one server. waiting, decoding: say how many prompts wait and are decoded now."""

    def __init__(self, waiting: Callable[[], int], decoding: Callable[[], int]) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("dpad_requests", "Requests by endpoint and status", ["endpoint", "status"],
                                registry=registry)
        self.latency = Histogram("dpad_request_seconds", "From a request to the end of its answer", ["endpoint"],
                                 buckets=SECONDS, registry=registry)
        self.prompt_tokens = Counter("dpad_prompt_tokens", "Tokens of prompts that were answered", registry=registry)
        self.completion_tokens = Counter("dpad_completion_tokens", "Tokens of answers", registry=registry)
        self.batch_rows = Histogram("dpad_batch_rows", "Prompts decoded together", buckets=ROWS, registry=registry)
        self.batch_seconds = Histogram("dpad_batch_seconds", "Decoding of a batch", buckets=SECONDS, registry=registry)
        self.disconnects = Counter("dpad_disconnects", "Requests whose client left too early", registry=registry)
        Gauge("dpad_waiting", "Prompts that wait", registry=registry).set_function(waiting)
        Gauge("dpad_decoding", "Prompts that are decoded now", registry=registry).set_function(decoding)

    def count_batch(self, rows: int, seconds: float) -> None:
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
