"""Keyed pseudonyms: the same key gives the same names on any worker, without a table.

Every value is HMAC-SHA-256 of a domain word and the identifier, so that knowing
all pseudonyms of one kind says nothing about another kind, and nobody without
the key can test a guess. Source: NIST FIPS 198-1.
"""

import base64
import hmac
import os
import secrets
import stat
from pathlib import Path

from neurovfm_core.errors import UsageError
from neurovfm_core.files import fsync_folder

KEY_BYTES = 32
KEY_NAME = "pseudonym.key"
KEY_ID_NAME = "pseudonym.key_id"
SHIFT_RANGE_DAYS = 3650


class Pseudonymizer:
    """Pseudonyms, replacement UIDs and date shifts under one key.

    Parameters
    ----------
    key : 32 bytes
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise UsageError(f"the pseudonym key has {len(key)} bytes, {KEY_BYTES} are needed")
        self._key = key

    def __repr__(self) -> str:
        return f"Pseudonymizer(key_id={self.key_id!r})"

    @property
    def key_id(self) -> str:
        """Name of the key (16 characters): tells two keys apart, tells nothing of either."""
        return self._word("key", "id")

    def patient(self, patient_id: str, issuer: str = "") -> str:
        """Return ``pat_`` and 16 characters."""
        return "pat_" + self._word("patient", patient_id.strip(), issuer.strip())

    def study(self, uid: str) -> str:
        """Return ``stu_`` and 16 characters."""
        return "stu_" + self._word("study", uid.strip())

    def series(self, uid: str) -> str:
        """Return ``ser_`` and 16 characters."""
        return "ser_" + self._word("series", uid.strip())

    def instance(self, uid: str) -> str:
        """Return ``ins_`` and 16 characters."""
        return "ins_" + self._word("instance", uid.strip())

    def uid(self, uid: str) -> str:
        """Return the UID that stands for this one wherever it is referred to: ``2.25.`` and a number.

        DICOM PS3.5 B.2 (UUID derived UID): at most 44 of the 64 characters allowed.
        """
        return f"2.25.{int.from_bytes(self._digest('uid', uid.strip())[:16], 'big')}"

    def shift_days(self, patient_id: str, issuer: str = "") -> int:
        """Return how many days all dates of this patient move: -3650 to -1."""
        drawn = int.from_bytes(self._digest("date", patient_id.strip(), issuer.strip())[:8], "big")
        return -1 - drawn % SHIFT_RANGE_DAYS

    def _word(self, domain: str, *parts: str) -> str:
        return base64.b32encode(self._digest(domain, *parts)[:10]).decode().lower()

    def _digest(self, domain: str, *parts: str) -> bytes:
        # Lengths in front: otherwise ("12", "3") and ("1", "23") would be one patient.
        raw = [part.encode() for part in (domain, *parts)]
        message = b"".join(len(part).to_bytes(4, "big") + part for part in raw)
        return hmac.digest(self._key, message, "sha256")


class Vault:
    """The folder that keeps the key: the one secret of a workspace."""

    @staticmethod
    def create(folder: Path, key: bytes | None = None) -> Pseudonymizer:
        """Make the vault and its key, once.

        Parameters
        ----------
        key : 32 bytes
            A key restored from a backup; by default a new random one.

        Raises
        ------
        UsageError
            If there is a key already: a second one would give every patient a second name.
        """
        pseudonymizer = Pseudonymizer(key or secrets.token_bytes(KEY_BYTES))
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        _write_once(folder / KEY_NAME, pseudonymizer._key.hex())
        _write_once(folder / KEY_ID_NAME, pseudonymizer.key_id)
        fsync_folder(folder)
        return pseudonymizer

    @staticmethod
    def open(folder: Path, expected_key_id: str = "") -> Pseudonymizer:
        """Open the vault.

        Parameters
        ----------
        expected_key_id
            The key that existing data were named with, if there are any.

        Raises
        ------
        UsageError
            If the key is missing, damaged, readable by others, or another one.
        """
        path = folder / KEY_NAME
        if not path.is_file():
            raise UsageError("the vault has no pseudonym key", hint="restore it from its backup")
        for place, name in ((folder, "the vault"), (path, "the pseudonym key")):
            if place.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise UsageError(f"{name} can be read by other users", hint="chmod 700 vault; chmod 600 vault/*")
        try:
            pseudonymizer = Pseudonymizer(bytes.fromhex(path.read_text(encoding="ascii").strip()))
            known_id = (folder / KEY_ID_NAME).read_text(encoding="ascii").strip()
        except (ValueError, FileNotFoundError):
            raise UsageError("the pseudonym key is damaged", hint="restore it from its backup") from None
        if pseudonymizer.key_id not in {known_id} & {expected_key_id or known_id}:
            raise UsageError(
                "the pseudonym key is not the one this workspace was made with",
                hint="with another key every patient would get a second name; restore the first key",
            )
        return pseudonymizer


def _write_once(path: Path, text: str) -> None:
    """Write a private file that exists whole or not at all; refuse to replace one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)  # unlike a rename, this fails if the name is taken
    except FileExistsError:
        raise UsageError("the vault has a pseudonym key already", hint="open it instead") from None
    finally:
        partial.unlink(missing_ok=True)
