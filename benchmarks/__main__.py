"""make bench: cold start, idle memory, the CPU of a token beside a bare relay, what admissions cost, what readers do,
and what a long session costs a browser.

Turnkeeper decodes, stores, limits, journals and re-emits each token; the relay only copies bytes. The ratio is what to
read: the microseconds drift with the machine.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from benchmarks import admission, interaction, readers
from tests.servers import free_port

ROOT = Path(__file__).parents[1]
TOKENS, PAUSE_MS = 256, 20
STREAMS = (1, 16, 64)
SETTINGS = """
default_model = "bench"
providers = [{{ id = "upstream", kind = "openai", base_url = "http://127.0.0.1:{port}/v1" }}]
models = [{{ id = "bench", provider = "upstream" }}]
[groups.guest]
sessions_created = "0"
turns = "0"
concurrent_turns = 0
open_sessions = 0
"""


@contextmanager
def running(
    *arguments: str, folder: Path, port: int, path: str = "/", **environment: str
) -> Iterator[tuple[int, float]]:
    """A Python process that serves on `port`: (pid, seconds until it answered)."""
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while time.monotonic() - begun < 30:
            with suppress(URLError, ConnectionError, OSError):
                urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).read()
                break
            time.sleep(0.01)
        yield process.pid, time.monotonic() - begun
    finally:
        process.terminate()
        process.wait(20)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def load(port: int, streams: int, request: bytes, pid: int) -> dict[str, float]:
    """Read `streams` replies at once: microseconds of CPU per token, and the median wait for the first."""
    before = cpu_seconds(pid)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", str(port), str(streams)],
        cwd=ROOT,
        input=request,
        capture_output=True,
        check=True,
        timeout=120,
    )
    told = json.loads(done.stdout)
    assert told["statuses"] == ["HTTP/1.1 200 OK"], told
    assert told["tokens"] == streams * TOKENS, told
    return {
        "cpu_us_per_token": (cpu_seconds(pid) - before) * 1e6 / told["tokens"],
        "first_ms": told["first_s"] * 1000,
        "end_s": told["end_s"],
    }


def chat_request(port: int) -> bytes:
    """A prompt as a guest, whose cookie the first page sets."""
    answer = urlopen(Request(f"http://127.0.0.1:{port}/", headers={"Accept": "text/html"}))
    cookie = answer.headers["set-cookie"].split(";")[0]
    body = b'{"prompt": "go"}'
    head = (
        f"POST /chat HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nCookie: {cookie}\r\nAccept: text/event-stream\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def main() -> None:
    upstream, relay, ours = free_port(), free_port(), free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "turnkeeper.toml").write_text(SETTINGS.format(port=upstream))
        serve = ("turnkeeper", "serve", "--port", str(ours))
        with running(*serve, folder=folder, port=ours, path="/readyz") as (_, first_start):
            pass
        with (
            running("benchmarks.upstream", str(upstream), str(TOKENS), str(PAUSE_MS), folder=ROOT, port=upstream),
            running("benchmarks.relay", str(relay), str(upstream), folder=ROOT, port=relay) as (relay_pid, _),
            running(*serve, folder=folder, port=ours, path="/readyz") as (our_pid, start),
        ):
            print(f"start: {first_start:.2f} s the first time (with migration), {start:.2f} s later")
            print(f"idle memory: {resident_mb(our_pid):.0f} MB (the relay: {resident_mb(relay_pid):.0f} MB)")
            bare = (
                f"POST / HTTP/1.1\r\nHost: 127.0.0.1:{relay}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
            )
            ask = chat_request(ours)
            load(ours, 1, ask, our_pid)  # the first turn imports the provider's SDK
            print(f"\n{TOKENS} tokens, {PAUSE_MS} ms apart; CPU per token, and the wait for the first")
            print(f"{'streams':>8} {'relay':>10} {'turnkeeper':>12} {'ratio':>7} {'relay':>10} {'turnkeeper':>12}")
            for streams in STREAMS:
                theirs = load(relay, streams, bare, relay_pid)
                mine = load(ours, streams, ask, our_pid)
                ratio = mine["cpu_us_per_token"] / max(theirs["cpu_us_per_token"], 0.1)
                cpu = f"{theirs['cpu_us_per_token']:>7.0f} µs {mine['cpu_us_per_token']:>9.0f} µs {ratio:>7.1f}"
                print(f"{streams:>8} {cpu} {theirs['first_ms']:>7.0f} ms {mine['first_ms']:>9.0f} ms")
            print(f"\nmemory after that: {resident_mb(our_pid):.0f} MB")


if __name__ == "__main__":
    main()
    admission.on_both(admission.measure)
    asyncio.run(readers.main())
    interaction.main()
