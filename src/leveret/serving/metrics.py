"""Figures for Prometheus: what was asked, how long it took, what the scheduler is at."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from leveret.serving.worker import Worker

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Figures:
    """The counters of one server, in a registry of its own. No label is ever what a user wrote."""

    def __init__(self, worker: Worker | None) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("leveret_requests", "Requests by route and status.", ["route", "status"], registry=own)
        self.prompt_tokens = Counter("leveret_prompt_tokens", "Tokens of prompts.", registry=own)
        self.completion_tokens = Counter("leveret_completion_tokens", "Tokens generated.", registry=own)
        self.cancelled = Counter("leveret_cancelled", "Requests whose client left, or whose time was up.", registry=own)
        self.first_token = Histogram(
            "leveret_first_token_seconds", "From a request to its first token.", buckets=SECONDS, registry=own
        )
        self.seconds = Histogram(
            "leveret_request_seconds", "From a request to the end of its answer.", buckets=SECONDS, registry=own
        )
        if worker is not None:
            self.registry.register(_SchedulerState(worker))

    def count(self, route: str, status: int) -> None:
        self.requests.labels(route, str(status)).inc()

    def text(self) -> bytes:
        """In Prometheus' text form."""
        return generate_latest(self.registry)


class _SchedulerState:
    """Reads the scheduler when it is asked."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def collect(self) -> Iterator[Metric]:
        scheduler = self.worker.scheduler
        for name, told, value in (
            ("leveret_answers_running", "Answers that have a slot.", scheduler.running),
            ("leveret_answers_waiting", "Answers that wait for one.", scheduler.waiting),
            ("leveret_slots", "Answers that can be generated at once.", scheduler.slots),
            ("leveret_cache_bytes", "Memory of the key/value cache.", scheduler.slots * scheduler.bytes_per_slot),
            ("leveret_cached_tokens", "Tokens of prompts kept for those to come.", scheduler.cached_tokens),
            ("leveret_prefix_hits", "Prompts that began with a kept one.", scheduler.prefix_hits),
        ):
            yield GaugeMetricFamily(name, told, value)
