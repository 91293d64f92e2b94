"""One series becomes the volumes it holds: NIfTI files with a sidecar, or a reason why not."""

import gzip
import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from neurovfm_core.dicom.contrast import modality_of, sequence_class, sidecar
from neurovfm_core.dicom.frames import Frame, Kind, read_frames
from neurovfm_core.dicom.gate import check_series
from neurovfm_core.dicom.geometry import Stack, by_place, stack, to_ras, unsheared
from neurovfm_core.errors import Excluded, Reason
from neurovfm_core.files import written_whole
from neurovfm_core.params import Params, canonical_json
from neurovfm_core.vocabulary import Modality

logger = logging.getLogger(__name__)

AIR_HU = -1000
PADDING_BELOW_HU = -2000  # no tissue is there; scanners fill the corners of the field of view with it
PADDING_AT_MOST_HU = -900  # a padding value above this would be tissue
SLICE_AXIS = 2  # slices are stacked along the last axis of the array
GZIP_LEVEL = 1  # level 6 costs seven times the whole conversion for 8 % of the size


class ConvertParams(Params):
    """Which volumes a series may become."""

    min_slices: int = Field(default=4, ge=1)
    """Fewer slices than this are not a volume."""
    tilt: Literal["correct", "exclude"] = "correct"
    """What to do with a tilted gantry: shift the slices back within their planes, or exclude."""


@dataclass(frozen=True, slots=True)
class ConvertedVolume:
    """A volume that was written."""

    volume_id: str
    modality: Modality
    shape: tuple[int, int, int]  # (i, j, k): columns, rows, slices
    spacing_mm: tuple[float, float, float]
    slice_axis: int
    sequence_class: str
    num_slices: int
    flags: tuple[str, ...]
    outputs: tuple[str, ...]  # relative to the workspace
    bytes: int
    sha256: str  # over the NIfTI file, then the sidecar


@dataclass(frozen=True, slots=True)
class RejectedVolume:
    """A volume, or a whole series, that is not for us."""

    volume_id: str
    reason: Reason
    detail: str


def convert_series(
    series_folder: Path, out_folder: Path, series_id: str, params: ConvertParams
) -> list[ConvertedVolume | RejectedVolume]:
    """Convert the DICOM files of one series.

    Parameters
    ----------
    series_folder
        Every file in it belongs to the series.
    out_folder
        Gets ``<series_id>_v<k>.nii.gz`` and ``.json``, one pair per volume: per
        echo, b-value, image type and time point.

    Returns
    -------
    list
        One entry per volume, at least one in all; a series refused as a whole is one
        rejected ``_v0``. The order of the files plays no part in it.
    """
    frames, flags, refused = _read_all(sorted(path for path in series_folder.iterdir() if path.is_file()))
    if not frames:
        reason, detail = max(refused, key=refused.__getitem__, default=(Reason.UNREADABLE, "no files"))
        return [RejectedVolume(f"{series_id}_v0", reason, detail)]
    try:
        check_series(frames)
    except Excluded as excluded:
        return [RejectedVolume(f"{series_id}_v0", excluded.reason, excluded.what)]
    results: list[ConvertedVolume | RejectedVolume] = []
    for kind in _by_kind(frames):
        try:
            groups = _volumes(kind, flags)
        except Excluded as excluded:
            results.append(RejectedVolume(f"{series_id}_v{len(results)}", excluded.reason, excluded.what))
            continue
        for group in groups:
            volume_id = f"{series_id}_v{len(results)}"
            try:
                results.append(_convert(group, out_folder, volume_id, set(flags), params))
            except Excluded as excluded:
                results.append(RejectedVolume(volume_id, excluded.reason, excluded.what))
    logger.debug("series converted series_id=%s volumes=%d", series_id, len(results))
    return results


def _read_all(paths: Iterable[Path]) -> tuple[list[Frame], set[str], dict[tuple[Reason, str], int]]:
    """Return the slices of all files once each, quality flags, and why files were left out."""
    frames: list[Frame] = []
    seen: set[str] = set()
    flags: set[str] = set()
    refused: dict[tuple[Reason, str], int] = {}
    for path in paths:
        try:
            found = read_frames(path)
        except Excluded as excluded:
            refused[excluded.reason, excluded.what] = refused.get((excluded.reason, excluded.what), 0) + 1
            flags.add(f"{excluded.reason}_dropped")
            continue
        if found[0].sop_uid in seen:
            flags.add("duplicates_dropped")
            continue
        seen.add(found[0].sop_uid)
        if found[0].header.get("LossyImageCompression") == "01":
            flags.add("lossy")
        frames.extend(found)
    return frames, flags, refused


def _by_kind(frames: list[Frame]) -> list[list[Frame]]:
    """Return the slices of each acquisition, in the order of echo, b-value, image type and time."""
    kinds: dict[tuple[tuple[int, int], tuple[float, float], Kind], list[Frame]] = {}
    times = {frame.kind.temporal for frame in frames}
    # Some scanners count slices in the temporal position; then it separates nothing.
    ignore_time = len(times) == len(frames)
    for frame in frames:
        kind = replace(frame.kind, temporal=0) if ignore_time else frame.kind
        kinds.setdefault((frame.shape, frame.spacing_mm, kind), []).append(frame)
    return [kinds[key] for key in sorted(kinds)]


def _volumes(frames: list[Frame], flags: set[str]) -> list[list[Frame]]:
    """Split slices of one kind into volumes: each place once, in order along the normal."""
    places = by_place(frames)
    counts = {len(place) for place in places}
    if len(counts) == 1:
        return [list(volume) for volume in zip(*places, strict=True)]
    for place in places:
        first = place[0].stored()
        if any(not np.array_equal(first, other.stored()) for other in place[1:]):
            raise Excluded(
                Reason.DUPLICATE_SLICES, f"from {min(counts)} to {max(counts)} different slices at one place"
            )
    flags.add("duplicates_dropped")
    return [[place[0] for place in places]]


def _convert(
    frames: list[Frame], out_folder: Path, volume_id: str, flags: set[str], params: ConvertParams
) -> ConvertedVolume:
    if len(frames) < params.min_slices:
        what = f"{len(frames)} slices, at least {params.min_slices} are needed"
        raise _or_truncated(flags, Reason.TOO_FEW_SLICES, what)
    try:
        stacked = stack(frames)
    except Excluded as excluded:
        raise _or_truncated(flags, excluded.reason, excluded.what) from None
    if stacked.tilted and params.tilt == "exclude":
        raise Excluded(Reason.GANTRY_TILT, "slices are sheared against each other")
    modality = modality_of(frames[0])
    volume, padded = _voxels(stacked, modality)
    affine = stacked.affine
    if padded:
        flags.add("padding_replaced")
    if stacked.tilted:
        whole_numbers = np.array_equal(volume, np.rint(volume))
        volume, affine = unsheared(volume, affine, AIR_HU if modality is Modality.CT else 0.0)
        volume = np.rint(volume) if whole_numbers else volume
        flags.add("tilt_corrected")
    if volume.min() == volume.max():
        raise Excluded(Reason.NOT_A_VOLUME, "all voxels are equal")
    label = sequence_class(frames[0])
    facts = sidecar(frames[0], label) | {
        "SliceAxis": SLICE_AXIS,
        "NumSlices": len(frames),
        "Flags": sorted(flags),
    }
    contents = {
        f"{volume_id}.nii.gz": _nifti(_narrowed(volume), to_ras(affine)),
        f"{volume_id}.json": canonical_json(facts).encode() + b"\n",
    }
    for name, content in contents.items():
        with written_whole(out_folder / name) as partial:
            partial.write_bytes(content)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return ConvertedVolume(
        volume_id=volume_id,
        modality=modality,
        shape=(volume.shape[0], volume.shape[1], volume.shape[2]),
        spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        slice_axis=SLICE_AXIS,
        sequence_class=label,
        num_slices=len(frames),
        flags=tuple(sorted(flags)),
        outputs=tuple(f"{out_folder.parent.name}/{out_folder.name}/{name}" for name in contents),
        bytes=sum(map(len, contents.values())),
        sha256=hashlib.sha256(b"".join(contents.values())).hexdigest(),
    )


def _or_truncated(flags: set[str], reason: Reason, what: str) -> Excluded:
    """Name the cause instead of the symptom, where a cut file left the gap."""
    if f"{Reason.TRUNCATED}_dropped" in flags:
        return Excluded(Reason.TRUNCATED, f"files without all their pixels were left out; then {what}")
    return Excluded(reason, what)


def _voxels(stacked: Stack, modality: Modality) -> tuple[NDArray[np.float64], bool]:
    """Return the (i, j, k) rescaled values, HU for CT, and whether padding was replaced by air."""
    padded = False
    rows, columns = stacked.frames[0].shape
    volume = np.empty((columns, rows, len(stacked.frames)), order="F")
    for k, frame in enumerate(stacked.frames):
        stored = frame.stored()
        values = stored * frame.slope + frame.intercept
        if modality is Modality.CT:
            padding = (values <= PADDING_BELOW_HU) | _is_padding(stored, values, frame)
            padded |= bool(padding.any())
            values[padding] = AIR_HU
        volume[:, :, k] = values.T
    return volume, padded


def _is_padding(stored: NDArray[np.integer], values: NDArray[np.floating], frame: Frame) -> NDArray[np.bool_] | bool:
    value = frame.header.get("PixelPaddingValue")
    if not isinstance(value, int):
        return False
    # The element may be typed as unsigned where the pixels are signed: compare the bits.
    return ((stored.astype(np.int64) - value) % 2**frame.layout.bits_allocated == 0) & (values <= PADDING_AT_MOST_HU)


def _narrowed(volume: NDArray[np.float64]) -> NDArray[np.int16] | NDArray[np.float32]:
    """Return int16 if that holds every value exactly, else float32."""
    limits = np.iinfo(np.int16)
    if volume.min() >= limits.min and volume.max() <= limits.max and np.array_equal(volume, np.rint(volume)):
        return volume.astype(np.int16)
    return volume.astype(np.float32)


def _nifti(array: NDArray[np.int16] | NDArray[np.float32], affine: NDArray[np.float64]) -> bytes:
    """Return a compressed NIfTI-1 file: the same bytes for the same volume on any day."""
    import nibabel

    image = nibabel.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=GZIP_LEVEL, mtime=0)
