"""What systemd is told of the service (sd_notify(3)): that it is ready, that it stops, and that it still works."""

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress


class Notifier:
    """Tells systemd, where systemd asks for it; elsewhere nothing."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        # Taken away, so that no process that is started here speaks for the service.
        path, of = environ.pop("NOTIFY_SOCKET", ""), environ.pop("WATCHDOG_PID", "")
        wanted = environ.pop("WATCHDOG_USEC", "")
        #: a name that begins with "@" is no file: the kernel writes it with NUL
        self._address = "\0" + path[1:] if path.startswith("@") else path
        mine = path and wanted.isdecimal() and of in ("", str(os.getpid()))
        #: how often systemd wants to hear of it at least, halved; None where it does not
        self.every_seconds = int(wanted) / 2_000_000 if mine and int(wanted) > 0 else None
        self._again_at = 0.0

    def ready(self, status: str) -> None:
        self.tell("READY=1", f"STATUS={status}")

    def stopping(self) -> None:
        self.tell("STOPPING=1", "STATUS=Stopping")

    def alive(self) -> None:
        """Feed the watchdog, as often as it wants; call it more often than that."""
        if self.every_seconds is not None and (now := time.monotonic()) >= self._again_at:
            self._again_at = now + self.every_seconds
            self.tell("WATCHDOG=1")

    def tell(self, *lines: str) -> None:
        if self._address:
            # That nobody listens is no reason to stop serving, nor is a full queue one to wait.
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as way:
                way.setblocking(False)
                way.sendto("\n".join(lines).encode(), self._address)


#: where no systemd asks
SILENT = Notifier({})


def the_notifier() -> Notifier:
    """The one for this process, as systemd has set its environment."""
    return Notifier(os.environ)
