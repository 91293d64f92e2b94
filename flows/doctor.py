"""What would break a run on this machine, found before it does."""

import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from neurovfm_core.errors import PipelineError

MUST_FIT = ("prefect", "fastapi", "sqlalchemy", "torch", "deltalake", "pydicom")


def examine(workspace: Path) -> list[dict[str, str]]:
    """Return findings: state (`ok`, `note`, `bad`), check, finding."""
    findings = [*_versions(), *_machine(workspace)]
    if (workspace / "site.toml").exists():
        findings += _workspace(workspace)
    else:
        findings.append(_finding("note", "workspace", f"none at {workspace}"))
    return findings


def _finding(state: str, check: str, finding: str) -> dict[str, str]:
    return {"state": state, "check": check, "finding": finding}


def _versions() -> list[dict[str, str]]:
    findings = [_finding("ok", "python", sys.version.split()[0])]
    wanted = {}
    for text in metadata.requires("neurovfm-pipeline") or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate():
            wanted[requirement.name.lower()] = requirement.specifier
    for name in MUST_FIT:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            findings.append(_finding("bad", name, f"missing; pip install '{name}{wanted.get(name, '')}'"))
            continue
        fits = wanted[name].contains(version) if name in wanted else True
        state = "ok" if fits else "bad"
        hint = "" if fits else f"; pip install '{name}{wanted[name]}'"
        findings.append(_finding(state, name, f"{version}{hint}"))
    return findings


def _machine(workspace: Path) -> list[dict[str, str]]:
    import torch

    place = workspace if workspace.exists() else Path.cwd()
    free = shutil.disk_usage(place).free / 2**30
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none, training runs on the CPU"
    return [
        _finding("ok", "processors", str(os.cpu_count())),
        _finding("ok" if free > 5 else "note", "free disk", f"{free:.1f} GiB at {place}"),
        _finding("ok" if torch.cuda.is_available() else "note", "GPU", device),
    ]


def _workspace(path: Path) -> list[dict[str, str]]:
    from neurovfm_core.deid import Vault
    from neurovfm_core.pacs.source import open_source
    from tasks.registry import STAGES
    from tasks.workspace import Workspace

    findings = []
    try:
        workspace = Workspace.open(path)
        findings.append(_finding("ok", "site.toml", "valid"))
        Vault.open(workspace.vault)
        findings.append(_finding("ok", "vault", "key present, folder private"))
        open_source(workspace.site.source.url)
        findings.append(_finding("ok", "source", "reachable"))
        for stage in STAGES:
            pin = workspace.store.manifest(stage.name).pin()
            if pin:
                findings.append(_finding("ok", f"manifest {stage.name}", f"version {pin.version}"))
    except PipelineError as error:
        findings.append(_finding("bad", "workspace", f"{error.what}. {error.hint}"))
    return findings
