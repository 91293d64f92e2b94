"""One run per stage and workspace: a file that its holder keeps alive.

No ``flock``: network file systems and mount options break it, and a killed
holder on another machine would hold it for ever. The lease only saves work; two
runs that both commit are still correct, because facts are appended.
"""

import json
import logging
import os
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from manifests.errors import Locked
from manifests.processes import certainly_dead, this_process

logger = logging.getLogger(__name__)


class Lease:
    """Hold a lease file while the block runs.

    A thread renews it by touching the file through its open descriptor, so a
    holder that slept too long can never touch its successor's lease. Clocks of
    machines that share a workspace must agree to a few seconds.

    Parameters
    ----------
    path
        The lease file; its folder is made.
    owner
        Who asks, for the message another run gets: run id, stage, ...
    ttl_s
        Seconds without renewal after which anybody may take the lease.
    renew_s
        Seconds between renewals.

    Attributes
    ----------
    lost
        Set if the lease was taken over or its file removed: stop as soon as possible.

    Raises
    ------
    Locked
        On entering, if another run holds the lease and is alive, as far as one can tell.
    """

    def __init__(self, path: Path, owner: dict[str, Any], ttl_s: float = 90, renew_s: float = 30) -> None:
        self.path, self.owner, self.ttl_s, self.renew_s = Path(path), owner, ttl_s, renew_s
        self.lost = threading.Event()
        self._token = uuid.uuid4().hex
        self._released = threading.Event()

    def __enter__(self) -> "Lease":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.{self._token}.partial")
        partial.write_text(json.dumps(self._record()))
        self._descriptor = os.open(partial, os.O_RDWR)
        try:
            self._acquire(partial)
        except BaseException:
            os.close(self._descriptor)
            raise
        finally:
            partial.unlink(missing_ok=True)
        self._heartbeat = threading.Thread(target=self._renew, name=f"lease {self.path.name}", daemon=True)
        self._heartbeat.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._released.set()
        self._heartbeat.join()
        if self._is_ours():
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _record(self) -> dict[str, Any]:
        return {
            "token": self._token,
            "owner": self.owner,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "ttl_s": self.ttl_s,
            **this_process(),
        }

    def _acquire(self, partial: Path) -> None:
        while True:
            try:
                os.link(partial, self.path)  # exclusive, and the file appears with its content
                return
            except FileExistsError:
                pass
            held, age_s = self._held()
            if held is None:
                continue  # released a moment ago
            reason = self._why_free(held, age_s)
            if reason is None or not self._take_over(held, partial):
                held = self._held()[0] or held
                raise Locked(
                    where=str(self.path),
                    owner=held.get("owner", {}),
                    host=held.get("host", "an unknown host"),
                    pid=held.get("pid", 0),
                    since=held.get("since", "an unknown time"),
                )
            logger.warning(
                "lease taken over path=%s because=%s host=%s pid=%s since=%s",
                self.path.name,
                reason,
                held.get("host"),
                held.get("pid"),
                held.get("since"),
            )
            return

    def _held(self) -> tuple[dict[str, Any] | None, float]:
        """Return the present lease and the seconds since its renewal; an unreadable one is empty."""
        try:
            # Opening asks a network file system for the true times; stat alone may answer from a cache.
            with self.path.open("rb") as file:
                age_s = time.time() - os.fstat(file.fileno()).st_mtime
                text = file.read()
        except FileNotFoundError:
            return None, 0.0
        try:
            record = json.loads(text)
        except ValueError:
            record = {}
        return (record if isinstance(record, dict) else {}), age_s

    def _why_free(self, held: dict[str, Any], age_s: float) -> str | None:
        if certainly_dead(held):
            return "its process is dead"
        if age_s > held.get("ttl_s", self.ttl_s):
            return "it expired"
        return None

    def _take_over(self, held: dict[str, Any], partial: Path) -> bool:
        """Replace exactly the lease that was judged free; return False if another run is doing so.

        The claim carries the token of the old lease: of all that want to replace
        it one creates the claim, and a lease with another token is left alone.
        """
        old_token = held.get("token", "unreadable")
        claim = self.path.with_name(f".{self.path.name}.{old_token}.claim")
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            try:
                if time.time() - claim.stat().st_mtime > self.ttl_s:
                    claim.unlink(missing_ok=True)  # its maker died here; the next attempt goes through
            except FileNotFoundError:
                pass
            return False
        try:
            now_held, _ = self._held()
            if now_held is None or now_held.get("token", "unreadable") != old_token:
                return False
            os.utime(partial)
            partial.replace(self.path)
            return True
        finally:
            claim.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._released.wait(self.renew_s):
            try:
                if not self._is_ours():
                    logger.warning("lease lost path=%s", self.path.name)
                    self.lost.set()
                    return
                os.utime(self._descriptor)
            except OSError as error:  # a file server that hiccups; it may be back for the next renewal
                logger.warning("lease not renewed path=%s error=%s", self.path.name, error)

    def _is_ours(self) -> bool:
        try:
            named = self.path.stat()
        except FileNotFoundError:
            return False
        mine = os.fstat(self._descriptor)
        return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)
