"""Preprocess: NIfTI volumes become 8-bit volumes on a common grid, with their foreground.

Reads     convert: one row per volume
Writes    one row per volume
Excludes  too_small, empty_foreground, implausible_geometry, implausible_intensity, not_a_volume
"""

from typing import Any

import numpy as np

from neurovfm_core.vocabulary import Modality
from neurovfm_core.volumes import PreprocessParams, prepare, read_nifti, to_patches, write_prepared
from tasks.stage import Candidates, Place, Stage, Unit, Upstream
from tasks.workspace import Workspace

SEMANTIC_VERSION = 1  # raise it when the same input and settings would give other bytes
METHODS = (
    "Volumes were reoriented, resampled to {in_plane_mm:g} x {in_plane_mm:g} mm in plane and {slice_mm:g} mm "
    "along the acquisition axis, and stored with one byte per voxel: MRI clipped at the 0.5 and 99.5 percentile "
    "(8 bits), CT in the brain (8 bits), blood and bone windows (4 bits each)."
)
CARRIES = ("patient_id", "study_id", "series_id", "modality", "time_bucket", "sequence_class")


def plan(workspace: Workspace, upstream: Upstream, params: PreprocessParams) -> Candidates:
    """Every converted volume."""
    table = upstream.current("convert", ["item_id", "sha256", "outputs", *CARRIES])
    return Candidates(table.append_column("input_fingerprint", table["sha256"]))


def execute(unit: Unit, params: PreprocessParams, place: Place) -> list[dict[str, Any]]:
    """Prepare one volume; raise `Excluded` if a rule says it is not for us."""
    path = place.checked(unit.columns["outputs"], unit.columns["sha256"])
    prepared = prepare(read_nifti(path, Modality(unit.columns["modality"])), params)
    target = place.folder / unit.columns["study_id"] / f"{unit.item_id}.npz"
    written = write_prepared(target, prepared)
    return [
        {
            "outputs": [place.relative(target)],
            "bytes": written.bytes,
            "sha256": written.sha256,
            "shape": list(prepared.code.shape),
            "spacing_mm": list(prepared.spacing_mm),
            "view": int(prepared.view),
            "foreground_share": prepared.qc["foreground_share"],
            "foreground_ml": prepared.qc["foreground_ml"],
            "clipped_share": prepared.qc["clipped_share"],
            "num_tokens": int(np.count_nonzero(to_patches(prepared).foreground_count)),
        }
    ]


STAGE = Stage(
    name="preprocess",
    reads=("convert",),
    semantic_version=SEMANTIC_VERSION,
    methods=METHODS,
    plan=plan,
    execute=execute,
    carries=CARRIES,
)
