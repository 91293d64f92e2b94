"""One 3D array with its geometry, and how it is read from a file."""

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from neurovfm_core.errors import Excluded, Reason
from neurovfm_core.vocabulary import Modality

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume as acquired.

    Attributes
    ----------
    array : (i, j, k) real number
        MR in any unit, CT in HU.
    affine : (4, 4) float64
        Voxel index (i, j, k) to patient coordinates, RAS, mm.
    slice_axis
        Which array axis is the stack axis; None if nobody knows.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    modality: Modality
    slice_axis: int | None = None

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along i, j, k."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)


def read_nifti(path: Path, modality: Modality | None = None) -> Volume:
    """Read a 3D volume, and its sidecar if one lies beside it.

    Parameters
    ----------
    path
        `.nii`, `.nii.gz`; by SimpleITK also `.nrrd`, `.nhdr`, `.mha`, `.mhd`. The sidecar is the
        `.json` of the same stem, with the keys `Modality` and `SliceAxis`.
    modality
        Overrules the sidecar; needed if there is none.

    Returns
    -------
    Volume
        Integer voxels keep their dtype, scaled ones become float32.

    Raises
    ------
    Excluded
        UNREADABLE, NOT_A_VOLUME, NOT_GREYSCALE, or NO_KNOWN_MODALITY.
    """
    sidecar = _sidecar(path)
    modality = modality or sidecar.get("Modality")
    if modality not in set(Modality):
        raise Excluded(
            Reason.NO_KNOWN_MODALITY,
            "neither the caller nor a sidecar says whether this is CT or MR",
            where=path.name,
            hint="name the modality, or put a .json sidecar with the key Modality beside the file",
        )
    if path.name.endswith(NIFTI_SUFFIXES):
        array, affine = _read_nifti(path)
    elif path.name.endswith(ITK_SUFFIXES):
        array, affine = _read_itk(path)
    else:
        raise Excluded(Reason.UNREADABLE, "not a file type that is read here", where=path.name)
    if array.dtype.fields is not None or array.dtype.kind not in "iuf":
        raise Excluded(Reason.NOT_GREYSCALE, f"voxels are {array.dtype}, not one real number", where=path.name)
    array = array.reshape(array.shape + (1,) * (3 - array.ndim))
    if array.ndim > 3 and max(array.shape[3:]) == 1:
        array = array.reshape(array.shape[:3])
    if array.ndim != 3 or 0 in array.shape:
        raise Excluded(Reason.NOT_A_VOLUME, f"the array is {array.shape}, not 3D", where=path.name)
    slice_axis = sidecar.get("SliceAxis")
    if slice_axis not in (None, 0, 1, 2):
        raise Excluded(Reason.UNREADABLE, "SliceAxis of the sidecar is not 0, 1 or 2", where=path.name)
    return Volume(array, affine, Modality(modality), slice_axis)


def _sidecar(path: Path) -> dict[str, Any]:
    stem = next((path.name.removesuffix(s) for s in NIFTI_SUFFIXES if path.name.endswith(s)), path.stem)
    sidecar = path.with_name(f"{stem}.json")
    if not sidecar.exists():
        return {}
    try:
        content = json.loads(sidecar.read_text())
    except ValueError as error:
        raise Excluded(Reason.UNREADABLE, "the sidecar is not JSON", where=sidecar.name) from error
    if not isinstance(content, dict):
        raise Excluded(Reason.UNREADABLE, "the sidecar is not a JSON object", where=sidecar.name)
    return content


def _read_nifti(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    try:
        image: Any = nibabel.load(path, mmap=False)
        stored = image.dataobj
        if stored.dtype.fields is None and (stored.slope, stored.inter) != (1.0, 0.0):
            array = np.asarray(stored, dtype=np.float32)
        else:
            array = stored.get_unscaled()
    except (
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        gzip.BadGzipFile,
        nibabel.filebasedimages.ImageFileError,
    ) as error:
        raise Excluded(
            Reason.UNREADABLE, f"not a readable NIfTI file ({type(error).__name__})", where=path.name
        ) from error
    return array, np.asarray(image.affine, dtype=np.float64)


def _read_itk(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    import SimpleITK  # 0.2 s to import, and the pipeline's own files never need it

    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        raise Excluded(Reason.UNREADABLE, "ITK cannot read it", where=path.name) from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise Excluded(Reason.NOT_GREYSCALE, "several components per voxel", where=path.name)
    if image.GetDimension() != 3:
        raise Excluded(Reason.NOT_A_VOLUME, f"{image.GetDimension()}D, not 3D", where=path.name)
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).T, RAS_FROM_LPS @ lps
