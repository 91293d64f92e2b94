"""Convert: every exported series becomes NIfTI volumes with a sidecar.

Reads     export: one row per series
Writes    one row per volume; a series that gives none keeps one row with the reason
Excludes  localizer, derived, not_greyscale, too_few_slices, mixed_orientations, missing_geometry,
          uneven_spacing, gantry_tilt, duplicate_slices, truncated, unsupported_encoding, not_a_volume
"""

from typing import Any

from neurovfm_core.deid import folder_sha256
from neurovfm_core.dicom import ConvertParams, RejectedVolume, convert_series
from neurovfm_core.errors import IntegrityError
from tasks.stage import Candidates, Place, Stage, Unit, Upstream
from tasks.workspace import Workspace

SEMANTIC_VERSION = 1  # raise it when the same input and settings would give other bytes
METHODS = (
    "DICOM instances were assembled into volumes by orientation, acquisition and projected slice position, and "
    "stored as NIfTI; localizers, derived reformats, secondary captures and series of fewer than four slices "
    "were excluded."
)
CARRIES = ("patient_id", "study_id", "series_id", "modality", "time_bucket")


def plan(workspace: Workspace, upstream: Upstream, params: ConvertParams) -> Candidates:
    """Every exported series."""
    columns = ["item_id", "sha256", "outputs", *CARRIES]
    table = upstream.current("export", columns, where="status = 'ok' and kind = 'series'")
    return Candidates(table.append_column("input_fingerprint", table["sha256"]))


def execute(unit: Unit, params: ConvertParams, place: Place) -> list[dict[str, Any]]:
    """Convert one series; it may give several volumes, each its own row."""
    output = unit.columns["outputs"][0]
    folder = place.root / output
    if not folder.is_dir() or folder_sha256(folder) != unit.columns["sha256"]:
        raise IntegrityError("a series differs from its manifest's checksum", where=output)
    target = place.folder / unit.columns["study_id"]
    rows: list[dict[str, Any]] = []
    for volume in convert_series(folder, target, unit.item_id, params):
        if isinstance(volume, RejectedVolume):
            rows.append(
                {
                    "item_id": volume.volume_id,
                    "status": "excluded",
                    "reason": volume.reason.value,
                    "detail": volume.detail,
                }
            )
            continue
        rows.append(
            {
                "item_id": volume.volume_id,
                "outputs": [place.relative(target / f"{volume.volume_id}{end}") for end in (".nii.gz", ".json")],
                "bytes": volume.bytes,
                "sha256": volume.sha256,
                "sequence_class": volume.sequence_class,
                "shape": list(volume.shape),
                "spacing_mm": list(volume.spacing_mm),
                "slice_axis": volume.slice_axis,
                "flags": list(volume.flags),
            }
        )
    return rows


STAGE = Stage(
    name="convert",
    reads=("export",),
    semantic_version=SEMANTIC_VERSION,
    methods=METHODS,
    plan=plan,
    execute=execute,
    hashed_outputs=2,
    carries=CARRIES,
)
