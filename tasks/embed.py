"""Features of any NIfTI or DICOM with a trained encoder; no workspace, no manifest."""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from neurovfm_core.dicom import ConvertParams, RejectedVolume, convert_series
from neurovfm_core.errors import Excluded, PipelineError, Reason, UsageError
from neurovfm_core.files import written_whole
from neurovfm_core.pacs.source import FolderSource, StrayFile
from neurovfm_core.shards import NormalizationStats, VolumeTokens
from neurovfm_core.vocabulary import Modality, Split
from neurovfm_core.volumes import PreprocessParams, prepare, read_nifti, windows_of

logger = logging.getLogger(__name__)

NIFTI_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")


def embed_paths(
    paths: Sequence[Path], encoder_folder: Path, out: Path, *, preset: str, modality: str | None
) -> list[dict[str, Any]]:
    """Embed every volume found below some paths.

    Returns
    -------
    list of dict
        One row per volume, series or file: input, status, reason, detail, output, num_tokens.

    Raises
    ------
    UsageError
        If the encoder, a path, the preset or the modality does not exist.
    """
    from neurovfm_core.models.checkpoints import load_encoder
    from neurovfm_core.probing.features import normalization_of

    presets = get_args(PreprocessParams.model_fields["preset"].annotation)
    if preset not in presets:
        raise UsageError(f"there is no preset {preset!r}", hint=", ".join(presets))
    if modality is not None and modality not in list(Modality):
        raise UsageError(f"{modality!r} is not a modality", hint="CT or MR")
    for path in paths:
        if not path.exists():
            raise UsageError("there is no such file or folder", where=str(path))
    encoder = load_encoder(encoder_folder)
    stats = normalization_of(encoder_folder)
    params = PreprocessParams.model_validate({"preset": preset})
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, found in _volumes(paths, Path(scratch)):
            try:
                if isinstance(found, Excluded):
                    raise found
                # A converted series says itself what it is; the option is for files that do not.
                told = None if found.is_relative_to(scratch) else modality
                facts = _embed(found, name, told, encoder, stats, params, out)
                rows.append({"input": name, "status": "ok", "reason": "", "detail": "", **facts})
            except Excluded as error:
                rows.append(_refused(name, "excluded", error.reason, error.what))
            except PipelineError as error:
                rows.append(_refused(name, "failed", Reason.UNEXPECTED, error.what))
    return rows


def _refused(name: str, status: str, reason: Reason, detail: str) -> dict[str, Any]:
    return {
        "input": name,
        "status": status,
        "reason": reason.value,
        "detail": detail,
        "output": "",
        "num_tokens": 0,
    }


def _volumes(paths: Sequence[Path], scratch: Path) -> Iterator[tuple[str, Path | Excluded]]:
    """Yield NIfTI files as they are, and DICOM series converted into scratch."""
    for path in paths:
        if path.is_file() and path.name.endswith(NIFTI_SUFFIXES):
            yield path.name, path
            continue
        if path.is_dir():
            for file in sorted(p for p in path.rglob("*") if p.name.endswith(NIFTI_SUFFIXES)):
                yield file.relative_to(path).as_posix(), file
        yield from _converted(path, scratch)


def _converted(path: Path, scratch: Path) -> Iterator[tuple[str, Path | Excluded]]:
    root = path
    if path.is_file():
        root = Path(tempfile.mkdtemp(dir=scratch))
        shutil.copy(path, root)
    for number, entry in enumerate(FolderSource(root).listing()):
        if isinstance(entry, StrayFile):
            if not entry.path.name.endswith(NIFTI_SUFFIXES):
                yield entry.path.name, Excluded(entry.reason, entry.detail)
            continue
        series = Path(tempfile.mkdtemp(dir=scratch))
        for index, file in enumerate(entry.files):
            (series / f"{index}.dcm").symlink_to(file.resolve())
        name = f"{path.name}-series{number:03d}"
        for volume in convert_series(series, scratch / "nifti", name, ConvertParams()):
            if isinstance(volume, RejectedVolume):
                yield volume.volume_id, Excluded(volume.reason, volume.detail)
            else:
                yield volume.volume_id, scratch / "nifti" / f"{volume.volume_id}.nii.gz"


def _embed(
    path: Path,
    name: str,
    modality: str | None,
    encoder: Any,
    stats: NormalizationStats,
    params: PreprocessParams,
    out: Path,
) -> dict[str, Any]:
    import torch

    prepared = prepare(read_nifti(path, Modality(modality) if modality else None), params)
    volume = VolumeTokens.from_prepared(
        prepared, volume_id="volume", study_id="study", patient_id="patient", split=Split.TEST
    ).select(0.25)
    coords = torch.from_numpy(volume.coords)
    features = []
    with torch.no_grad():
        for window in windows_of(volume.modality):
            tokens = torch.from_numpy(stats.table(volume.modality, window)[volume.tokens])
            features.append(encoder(tokens, coords, [len(tokens)]).float().numpy())
    tokens_ND = np.concatenate(features)
    target = out / f"{name.replace('/', '_')}.npz"
    with written_whole(target) as partial, partial.open("wb") as file:
        np.savez(
            file,
            mean=tokens_ND.mean(axis=0),
            tokens=tokens_ND.astype(np.float16),
            coords=np.tile(volume.coords, (len(features), 1)),
            affine=volume.affine,
        )
    return {"output": str(target), "num_tokens": len(tokens_ND)}
