"""A share whose server can be stopped: every call on it hangs until the server goes on."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from house import until

MOUNT = ("-o", "auto_unmount,attr_timeout=0,entry_timeout=0")
"""The mount goes with its server; nothing is answered from the kernel's memory."""


class Share:
    """What lies in ``behind``, mounted at ``place`` through FUSE."""

    def __init__(self, behind: Path, place: Path, *options: str) -> None:
        self.behind, self.place = behind, place
        behind.mkdir(exist_ok=True)
        place.mkdir(exist_ok=True)
        # it dies with us, and the mount with it
        self.server = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig",
                "KILL",
                "bindfs",
                "-f",
                *options,
                *MOUNT,
                str(behind),
                str(place),
            ]
        )
        until(lambda: os.path.ismount(place), "the mount")

    def hang(self) -> None:
        """From now on nobody gets an answer."""
        self.server.send_signal(signal.SIGSTOP)

    def answer(self) -> None:
        """It goes on where it was."""
        self.server.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Unmount it, whatever happened."""
        self.answer()
        subprocess.run(["umount", "--lazy", str(self.place)], check=False, capture_output=True)
        self.server.kill()
        self.server.wait(20)
