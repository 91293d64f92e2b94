"""Which process wrote something down, and whether it is certainly dead."""

import os
import socket
from pathlib import Path
from typing import Any

# Linux gives its first pid namespace this number; any other one is a container's.
_HOST_PID_SPACE = "pid:[4026531836]"


def this_process() -> dict[str, Any]:
    """Return what identifies this process among all machines that share the workspace."""
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid_space": _pid_space(),
        "pid": os.getpid(),
        "pid_started": _started(os.getpid()),
    }


def certainly_dead(process: dict[str, Any]) -> bool:
    """Return whether the process was on this machine and is no more. Unsure is False.

    Containers may share a host name without sharing a machine, and pids are
    used again, so host name and pid alone would declare living runs dead.
    """
    here = this_process()
    if not process.get("pid") or process.get("host") != here["host"]:
        return False
    if process.get("boot") != here["boot"]:
        return process.get("pid_space") == here["pid_space"] == _HOST_PID_SPACE  # the machine was restarted
    if process.get("pid_space") != here["pid_space"]:
        return False
    if process.get("pid_started") is not None:
        return _started(process["pid"]) != process["pid_started"]
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it lives, under another user
        return False
    return False


def _boot() -> str:
    return _text(Path("/proc/sys/kernel/random/boot_id"))


def _pid_space() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """Return the clock ticks from boot to the start of a process; None if dead, or not on Linux."""
    text = _text(Path(f"/proc/{pid}/stat"))
    if not text:
        return None
    # The name, in parentheses, may hold blanks; after it come the state (field 3) and so on.
    fields = text.rpartition(")")[2].split()
    is_zombie = fields[0] == "Z"
    return None if is_zombie else int(fields[19])


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
