"""Siemens mosaics: the two facts that only the vendor's private header holds.

A mosaic tiles all slices of a volume into one image. How many there are, and on
which side of the image plane the next one lies, stands in a binary block that
also holds the patient's name. Export writes just these numbers into a private
block of its own, and conversion reads them from either place.
"""

import math
import warnings
from dataclasses import dataclass

from pydicom import Dataset

GROUP, CREATOR = 0x0019, "NEUROVFM MOSAIC"
CSA_GROUP, CSA_CREATOR, CSA_OFFSET = 0x0029, "SIEMENS CSA HEADER", 0x10


@dataclass(frozen=True, slots=True)
class Mosaic:
    """Number of tiles, and the direction (patient axes, LPS) from one slice to the next."""

    num_slices: int
    normal: tuple[float, float, float]


def is_mosaic(dataset: Dataset) -> bool:
    """Tell whether an image is a mosaic."""
    return "MOSAIC" in {str(word).upper() for word in dataset.get("ImageType") or ()}


def read_mosaic(dataset: Dataset) -> Mosaic | None:
    """Return the layout of a mosaic, None if the header does not tell or tells nonsense."""
    try:
        block = dataset.private_block(GROUP, CREATOR)
        return _checked(int(block[0x01].value), list(block[0x02].value))
    except KeyError:
        pass
    try:
        raw = dataset.private_block(CSA_GROUP, CSA_CREATOR)[CSA_OFFSET].value
    except KeyError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces on import that it is experimental
        from nibabel.nicom import csareader
    try:
        tags = csareader.read(raw)["tags"]
        count = tags["NumberOfImagesInMosaic"]["items"]
        return _checked(int(count[0]), [float(part) for part in tags["SliceNormalVector"]["items"]])
    except (csareader.CSAReadError, KeyError, IndexError, ValueError, TypeError):
        return None


def write_mosaic(mosaic: Mosaic, dataset: Dataset) -> None:
    """Write the layout into our own private block."""
    block = dataset.private_block(GROUP, CREATOR, create=True)
    block.add_new(0x01, "US", mosaic.num_slices)
    block.add_new(0x02, "FD", list(mosaic.normal))


def _checked(num_slices: int, normal: list[float]) -> Mosaic | None:
    if not 1 <= num_slices <= 4096 or len(normal) != 3 or abs(math.hypot(*normal) - 1) > 1e-3:
        return None
    return Mosaic(num_slices, (normal[0], normal[1], normal[2]))
