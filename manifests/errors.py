"""What can be wrong with a manifest, in three lines: what, where, what to try."""


class ManifestError(Exception):
    """Base of this package's errors.

    Parameters
    ----------
    what
        One sentence; pseudonyms only.
    where
        The file, stage or column it is about.
    hint
        What the user can do about it.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what, where, hint)
        self.what, self.where, self.hint = what, where, hint

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"where: {self.where}")
        if self.hint:
            lines.append(f"try: {self.hint}")
        return "\n".join(lines)


class Locked(ManifestError):
    """Another run holds the lease. Its holder is in `owner`, `host`, `pid` and `since`."""

    def __init__(self, *, where: str, owner: dict, host: str, pid: int, since: str) -> None:
        who = owner.get("run_id") or owner.get("stage") or "another run"
        super().__init__(
            f"already running: {who} on {host}, process {pid}, since {since}",
            where=where,
            hint="wait for it to end; a killed run frees its lease by itself within two minutes",
        )
        self.owner, self.host, self.pid, self.since = owner, host, pid, since


class UnknownVersion(ManifestError):
    """A version was named that this manifest does not have."""


class DamagedManifest(ManifestError):
    """A manifest, a pin or a row is not what it claims to be. Nothing is read from it or added to it."""
