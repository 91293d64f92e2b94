"""A workspace on disk: one root for one data set."""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from manifests import ManifestStore, RunLedger
from neurovfm_core.deid import Vault
from neurovfm_core.errors import UsageError
from neurovfm_core.files import written_whole
from tasks.settings import Preset, Site, load_site, preset_text

FOLDERS = {
    "export": "dicom",
    "convert": "nifti",
    "preprocess": "volumes",
    "shard": "shards",
    "label": "labels",
    "pretrain": "encoders",
    "probe": "heads",
    "analyze": "analyses",
}
"""Bulk data of each stage, below the root."""

REPORTS_FOLDER = "reports"
"""De-identified report texts, kept apart from images."""


@dataclass(frozen=True)
class Workspace:
    """Paths of a workspace and its opened parts."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> "Workspace":
        """Open a workspace; its settings are read and checked at once.

        Raises
        ------
        UsageError
            If there is no valid `site.toml`.
        """
        workspace = cls(root.expanduser().resolve())
        _ = workspace.site
        return workspace

    @classmethod
    def create(
        cls, root: Path, *, source: str, warehouse: str | None, preset: Preset, key: bytes | None = None
    ) -> "Workspace":
        """Make a workspace: settings, and a vault with a new pseudonym key.

        Parameters
        ----------
        key
            A given key instead of a new random one. Only for synthetic data: it makes
            pseudonyms, and with them splits and results, the same every time.

        Raises
        ------
        UsageError
            If there is one already; it is left as it is.
        """
        workspace = cls(root.expanduser().resolve())
        site_file = workspace.root / "site.toml"
        if site_file.exists():
            raise UsageError(
                "there is a workspace here already",
                where=str(workspace.root),
                hint="edit its site.toml, or choose another folder",
            )
        workspace.root.mkdir(parents=True, exist_ok=True)
        Vault.create(workspace.vault, key)
        with written_whole(site_file) as partial:
            partial.write_text(preset_text(preset, source, warehouse), encoding="utf-8")
        return cls.open(root)

    @cached_property
    def site(self) -> Site:
        return load_site(self.root / "site.toml")

    @cached_property
    def store(self) -> ManifestStore:
        return ManifestStore(self.root / "manifests")

    @cached_property
    def ledger(self) -> RunLedger:
        return RunLedger(self.root / "runs")

    @property
    def vault(self) -> Path:
        return self.root / "vault"

    def lease_path(self, stage: str) -> Path:
        return self.root / "runs" / f"{stage}.lease"

    def folder(self, stage: str) -> Path:
        return self.root / FOLDERS[stage]

    def free_gb(self) -> float:
        return shutil.disk_usage(self.root).free / 2**30
