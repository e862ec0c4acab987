"""The figures of a process in Prometheus' text form (exposition format 0.0.4)."""

import os
import resource
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from services.counts import WAITS, Counts

TEXT = "text/plain; version=0.0.4"
BEGAN = time.time()
Labels = Mapping[str, str]


class Gauges(NamedTuple):
    """What is looked up when it is asked for."""

    #: everywhere, as the rows say
    turns_running: int
    streams: int
    #: {provider: whether it answers}; without those nothing is known of
    providers: Mapping[str, bool]
    version: str
    schema: str


class Family(NamedTuple):
    """One metric with all its samples: (suffix, labels, value)."""

    name: str
    kind: str
    about: str
    samples: list[tuple[str, Labels, float]]


def families(counts: Counts, gauges: Gauges) -> list[Family]:
    """Every metric there is."""

    def single(name: str, kind: str, about: str, value: float) -> Family:
        return Family(name, kind, about, [("", {}, value)])

    def by(name: str, about: str, pairs: Iterable[tuple[Labels, float]], kind: str = "counter") -> Family:
        return Family(name, kind, about, [("", labels, value) for labels, value in pairs])

    return [
        by(
            "turnkeeper_info",
            "The version that runs, and that of its schema.",
            [({"version": gauges.version, "schema": gauges.schema}, 1)],
            "gauge",
        ),
        single("turnkeeper_turns_running", "gauge", "Replies being written, in all processes.", gauges.turns_running),
        single("turnkeeper_streams_open", "gauge", "Open streams of this process.", gauges.streams),
        by(
            "turnkeeper_provider_up",
            "Whether a provider answers.",
            [({"provider": name}, up) for name, up in gauges.providers.items()],
            "gauge",
        ),
        by(
            "turnkeeper_turns_ended_total",
            "Replies that this process ended, by their model and how.",
            [({"model": model, "state": state}, count) for (model, state), count in counts.turns.items()],
        ),
        by(
            "turnkeeper_tokens_total",
            "Tokens of those replies; kind is prompt or reply.",
            [({"model": model, "kind": kind}, count) for (model, kind), count in counts.tokens.items()],
        ),
        by(
            "turnkeeper_cost_total",
            "Their cost, in money.",
            [({"model": model}, nanos / 1e9) for model, nanos in counts.cost_nanos.items()],
        ),
        Family(
            "turnkeeper_first_text_seconds",
            "histogram",
            "From accepting a message to the first text, of reasoning or of the reply.",
            [sample for model in counts.waited for sample in _waits(counts, model)],
        ),
        by(
            "turnkeeper_refusals_total",
            "Requests that were refused, by the code they were told.",
            [({"code": code}, count) for code, count in counts.refusals.items()],
        ),
        by(
            "turnkeeper_answers_total",
            "Answers that were begun, by their status.",
            [({"status": str(status)}, count) for status, count in counts.answers.items()],
        ),
        single("process_start_time_seconds", "gauge", "When this process began, in seconds since 1970.", BEGAN),
        single("process_cpu_seconds_total", "counter", "Processor time of this process.", sum(os.times()[:2])),
        *[
            single("process_" + name, "gauge", about, value)
            for name, about, value in (
                ("resident_memory_bytes", "Memory of this process.", _memory_bytes()),
                ("open_fds", "Files that this process has open.", _open_files()),
                ("max_fds", "Files that it may have open.", resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
            )
            if value is not None
        ],
    ]


def text(found: Iterable[Family]) -> str:
    """The text form; a metric that has no sample yet is named all the same."""
    lines = []
    for name, kind, about, samples in found:
        lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{suffix}{_labels(labels)} {value:.15g}" for suffix, labels, value in samples]
    return "\n".join(lines) + "\n"


def _waits(counts: Counts, model: str) -> list[tuple[str, Labels, float]]:
    buckets = [("_bucket", {"model": model, "le": f"{end:g}"}, counts.waits[model, end]) for end in WAITS]
    return [
        *buckets,
        ("_bucket", {"model": model, "le": "+Inf"}, counts.waited[model]),
        ("_sum", {"model": model}, counts.waited_seconds[model]),
        ("_count", {"model": model}, counts.waited[model]),
    ]


def _labels(labels: Labels) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    told = ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items())
    return f"{{{told}}}" if told else ""


def _memory_bytes() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return None


def _open_files() -> int | None:
    with suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return None
