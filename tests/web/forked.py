"""`python -m …` in a process of its own that is forked and not started: what it imports is imported once for all."""

import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from runpy import run_module

_forks = multiprocessing.get_context("forkserver")
#: what a server imports sooner or later, of ours and of its libraries
_OURS = ("web.__main__", "web.app", "web.workers", "web.welcome", "web.connection", "db.portable", "db.backfill")
_ITS_LIBRARIES = (
    "anyio._backends._asyncio",
    "litestar.exceptions.responses",
    "litestar.middleware.response_cache",
    "litestar.plugins.attrs",
    "litestar.plugins.pydantic",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.httptools_impl",
)
_forks.set_forkserver_preload([*_OURS, *_ITS_LIBRARIES, __name__])


class Forked:
    """A program that runs, to be used as a Popen is; `stdout` is all that it prints."""

    def __init__(self, module: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        reader, writer = _forks.Pipe(duplex=False)
        self._process = _start(module, arguments, folder, environment, [writer, writer])
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()), encoding="utf-8", errors="replace")
        reader.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    module: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], stdin: str = ""
) -> "subprocess.CompletedProcess[str]":
    """What a program says and how it ends."""
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place) / name for name in ("stdout", "stderr", "stdin")]
        for file in files:
            file.write_text(stdin if file.name == "stdin" else "")
        process = _start(module, arguments, folder, environment, files)
        process.join(120)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired([module, *arguments], 120)
        said, complained, _ = (file.read_bytes().decode() for file in files)
        return subprocess.CompletedProcess([module, *arguments], process.exitcode, said, complained)


def _start(
    module: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], files: Sequence[object]
) -> multiprocessing.context.ForkServerProcess:
    asked = (module, [*arguments], folder, dict(environment), [*files])
    process = _forks.Process(target=_become, args=asked, daemon=True)
    process.start()
    return process


def _become(
    module: str, arguments: list[str], folder: Path, environment: dict[str, str], files: list[Connection | Path]
) -> None:
    """Go on as `python -W error::DeprecationWarning -m module …` with its output, errors and input in these files."""
    for number, file in zip((1, 2, 0), files, strict=False):
        opened = os.open(file, os.O_RDWR) if isinstance(file, Path) else file.fileno()
        os.dup2(opened, number)
        if isinstance(file, Path):
            os.close(opened)
    for file in set(files):
        if isinstance(file, Connection):
            file.close()
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
    warnings.simplefilter("error", DeprecationWarning)
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [module, *arguments]
    run_module(module, run_name="__main__", alter_sys=True)
