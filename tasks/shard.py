"""Shard: prepared volumes become memory-mapped token shards, each patient in one split for ever.

Reads     preprocess: one row per volume
Writes    one row per volume
Excludes  empty_foreground
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from neurovfm_core.errors import Excluded, IntegrityError, Reason
from neurovfm_core.params import fingerprint
from neurovfm_core.shards import PatientStudy, ShardParams, VolumeTokens, assign_splits, write_shard
from neurovfm_core.vocabulary import VOXELS_PER_TOKEN, Split
from neurovfm_core.volumes import read_prepared
from tasks.stage import Candidates, Place, Stage, Unit, Upstream
from tasks.workspace import Workspace

SEMANTIC_VERSION = 1  # raise it when the same input and settings would give other bytes
METHODS = (
    "Volumes were cut into tokens of 4 x 16 x 16 voxels; tokens without foreground were dropped. Every patient "
    "belongs to one split for ever: to the temporally held-out test set (from {split.test_from} on), else by a "
    "keyed draw to validation ({split.val_share:.0%}) or training."
)
CARRIES = ("patient_id", "study_id", "series_id", "modality", "time_bucket", "sequence_class", "split")


def plan(workspace: Workspace, upstream: Upstream, params: ShardParams) -> Candidates:
    """Every prepared volume, with its patient's split: the recorded one, or a new decision."""
    table = upstream.current("preprocess", ["item_id", "sha256", "outputs", *CARRIES[:-1]])
    recorded = workspace.store.manifest("shard").current(columns=["patient_id", "split"])
    frozen = {
        patient: Split(split)
        for patient, split in zip(*(recorded[c].to_pylist() for c in ("patient_id", "split")), strict=True)
    }
    patients = table["patient_id"].to_pylist()
    studies = map(PatientStudy, patients, table["time_bucket"].to_pylist())
    splits = assign_splits(studies, frozen, params.split)
    column = pa.array([splits[patient].value for patient in patients], pa.string())
    return Candidates(table.append_column("split", column).append_column("input_fingerprint", table["sha256"]))


def bundle(units: Sequence[Unit], params: ShardParams) -> list[Unit]:
    """Put due volumes into shards of one split, in the order of the plan (a hash of the id)."""

    def split_of(unit: Unit) -> str:
        return unit.columns["split"]

    shards = []
    for split, group in groupby(sorted(units, key=split_of), key=split_of):
        of_split = list(group)
        for start in range(0, len(of_split), params.volumes_per_shard):
            members = tuple(of_split[start : start + params.volumes_per_shard])
            key = fingerprint(*(part for m in members for part in (m.item_id, m.input_fingerprint)))
            shards.append(Unit(f"{split}-{key[:12]}", key, {}, members=members))
    return shards


def execute(unit: Unit, params: ShardParams, place: Place) -> list[dict[str, Any]]:
    """Write one shard; a volume that cannot be read becomes a failed row and the others go on."""
    rows: list[dict[str, Any]] = []

    def volumes() -> Iterator[VolumeTokens]:
        for member in unit.members:
            facts: dict[str, Any] = {name: member.columns[name] for name in CARRIES}
            facts |= {"item_id": member.item_id, "source_id": member.item_id}
            facts |= {"input_fingerprint": member.input_fingerprint}
            rows.append(facts)
            try:
                path = place.checked(member.columns["outputs"], member.columns["sha256"])
                volume = VolumeTokens.from_prepared(
                    read_prepared(path),
                    volume_id=member.item_id,
                    study_id=member.columns["study_id"],
                    patient_id=member.columns["patient_id"],
                    split=Split(member.columns["split"]),
                )
            except IntegrityError as error:
                detail = f"{error.what}: {error.where}"
                facts |= {"status": "failed", "reason": Reason.CHECKSUM.value, "detail": detail}
                continue
            except Excluded as error:
                facts |= {"status": "excluded", "reason": error.reason.value, "detail": error.what}
                continue
            facts |= {"num_tokens": len(volume), "grid": list(volume.grid), "row": len(written)}
            # What this volume puts into the shard; the shard's own checksums are in its manifest.
            facts |= {"sha256": hashlib.sha256(np.ascontiguousarray(volume.tokens).data).hexdigest()}
            written.append(facts)
            yield volume

    written: list[dict[str, Any]] = []
    shard = write_shard(place.folder, unit.item_id, volumes(), params)
    for facts in written:
        facts["shard"] = shard.name
        facts["outputs"] = [place.relative(place.folder / name) for name in shard.files]
        facts["bytes"] = facts["num_tokens"] * VOXELS_PER_TOKEN
    return rows


STAGE = Stage(
    name="shard",
    reads=("preprocess",),
    semantic_version=SEMANTIC_VERSION,
    methods=METHODS,
    plan=plan,
    execute=execute,
    bundle=bundle,
    carries=CARRIES,
)
