"""A prepared volume as one `.npz` file: the same volume gives the same bytes.

Arrays: `code` uint8 (D, H, W), `foreground` packed to bits along the flattened volume,
`affine` float64 (4, 4), `about` the rest as JSON text in uint8. No pickles.
"""

import hashlib
import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurovfm_core.errors import IntegrityError
from neurovfm_core.files import written_whole
from neurovfm_core.params import canonical_json
from neurovfm_core.vocabulary import Modality
from neurovfm_core.volumes.orientation import View
from neurovfm_core.volumes.preparation import Prepared

FORMAT_VERSION = 1


class FileFacts(NamedTuple):
    """What a manifest keeps of a file."""

    bytes: int
    sha256: str


def write_prepared(path: Path, prepared: Prepared, *, compression: int = 1) -> FileFacts:
    """Write a prepared volume, whole or not at all.

    Parameters
    ----------
    compression
        zlib level 0 to 9; 0 stores. Level 1 halves a head in 15 ms, more gains little.
    """
    about = {
        "format_version": FORMAT_VERSION,
        "modality": prepared.modality,
        "spacing_mm": prepared.spacing_mm,
        "view": int(prepared.view),
        "qc": prepared.qc,
    }
    arrays: dict[str, NDArray[Any]] = {
        "code": prepared.code,
        "foreground": np.packbits(prepared.foreground),
        "affine": prepared.affine,
        "about": np.frombuffer(canonical_json(about).encode(), np.uint8),
    }
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compression else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method, compresslevel=compression or None) as archive:
        for name, array in arrays.items():
            # ZipInfo dates every member 1980; np.savez does too, but has no compression level.
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = method
            with archive.open(member, "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    content = buffer.getvalue()
    with written_whole(path) as partial:
        partial.write_bytes(content)
    return FileFacts(len(content), hashlib.sha256(content).hexdigest())


def read_prepared(path: Path) -> Prepared:
    """Read what `write_prepared` wrote.

    Raises
    ------
    IntegrityError
        Truncated, damaged, or of another format version.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            code, affine, bits = arrays["code"], arrays["affine"], arrays["foreground"]
    except (OSError, EOFError, KeyError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise IntegrityError(
            f"not a whole prepared volume ({type(error).__name__})",
            where=path.name,
            hint="run preprocess again",
        ) from error
    if about["format_version"] != FORMAT_VERSION:
        raise IntegrityError(
            f"format version {about['format_version']}, this code reads {FORMAT_VERSION}", where=path.name
        )
    foreground = np.unpackbits(bits, count=code.size).view(np.bool_).reshape(code.shape)
    depth, rows, columns = about["spacing_mm"]
    return Prepared(
        code,
        foreground,
        Modality(about["modality"]),
        (depth, rows, columns),
        View(about["view"]),
        affine,
        about["qc"],
    )
