"""Versioned manifests: what every stage did to every item, on Delta Lake."""

from manifests.differences import ManifestDiff
from manifests.errors import DamagedManifest, Locked, ManifestError, UnknownVersion
from manifests.freshness import Work, classify
from manifests.garbage import GarbageFile, collect, plan_gc
from manifests.lease import Lease
from manifests.ledger import RunLedger
from manifests.lineage import lineage, mermaid
from manifests.log import Commit
from manifests.schemas import COMMON, SCHEMA_VERSION, STAGE_SCHEMAS, grain, schema_version
from manifests.store import Manifest, ManifestStore, Pin

__all__ = [
    "COMMON",
    "SCHEMA_VERSION",
    "STAGE_SCHEMAS",
    "Commit",
    "DamagedManifest",
    "GarbageFile",
    "Lease",
    "Locked",
    "Manifest",
    "ManifestDiff",
    "ManifestError",
    "ManifestStore",
    "Pin",
    "RunLedger",
    "UnknownVersion",
    "Work",
    "classify",
    "collect",
    "grain",
    "lineage",
    "mermaid",
    "plan_gc",
    "schema_version",
]
