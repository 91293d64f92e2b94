"""Figures that say whether a volume can be trusted, and rules that refuse it."""

import numpy as np
from numpy.typing import NDArray

from neurovfm_core.errors import Excluded, Reason
from neurovfm_core.vocabulary import PATCH_SHAPE, Modality
from neurovfm_core.volumes.foreground import AIR_TISSUE_HU

AIR_HU = -200
"""A CT without any voxel below has no air: its values are not HU (or its offset was not applied)."""
TISSUE_MEDIAN_HU = (-300, 800)
"""Where the median of everything denser than air lies in any head, fat to metal."""
EVERY_NTH_SLICE = 4
"""Medians over a quarter of the slices are as good and cost a quarter."""
TOP_LEVEL = {Modality.MR: 255, Modality.CT: 103}


def check_size(shape: tuple[int, ...]) -> None:
    """Raise `Excluded` (TOO_SMALL) for less than one patch along any axis of (D, H, W)."""
    if any(size < patch for size, patch in zip(shape, PATCH_SHAPE, strict=True)):
        raise Excluded(Reason.TOO_SMALL, f"{shape} voxels on the common grid, one patch is {PATCH_SHAPE}")


def check_intensity(volume: NDArray[np.floating], modality: Modality) -> None:
    """Raise `Excluded`: not finite, constant, CT that is not in HU, CT without tissue.

    Parameters
    ----------
    volume : (D, H, W)
        Resampled, before quantisation; one voxel that is not finite upstream makes some here.
    """
    low, high = float(volume.min()), float(volume.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise Excluded(Reason.IMPLAUSIBLE_INTENSITY, "voxels that are not finite numbers")
    if high - low <= 1e-5 * max(abs(low), abs(high)):
        raise Excluded(Reason.IMPLAUSIBLE_INTENSITY, "every voxel has the same value")
    if modality is Modality.MR:
        return
    if low > AIR_HU:
        raise Excluded(
            Reason.IMPLAUSIBLE_INTENSITY,
            f"CT without air: the lowest value is {low:.0f}, so these are not HU",
            hint="apply RescaleSlope and RescaleIntercept",
        )
    thinned = volume[::EVERY_NTH_SLICE]
    tissue = thinned[thinned > AIR_TISSUE_HU]
    if tissue.size == 0:
        raise Excluded(Reason.EMPTY_FOREGROUND, f"CT without a voxel above {AIR_TISSUE_HU} HU")
    median = float(np.median(tissue))
    if not TISSUE_MEDIAN_HU[0] <= median <= TISSUE_MEDIAN_HU[1]:
        raise Excluded(Reason.IMPLAUSIBLE_INTENSITY, f"CT whose tissue has a median of {median:.0f} HU")


def quality(
    volume: NDArray[np.floating],
    code: NDArray[np.uint8],
    foreground: NDArray[np.bool_],
    modality: Modality,
    spacing_mm: tuple[float, float, float],
) -> dict[str, float]:
    """Return figures about one volume.

    Parameters
    ----------
    volume, code, foreground : (D, H, W)
        The same grid: before quantisation, after it, and where the patient is.

    Returns
    -------
    dict
        `foreground_ml`; `foreground_share` of the field of view; `clipped_share` of the foreground
        that is stored as the lowest or highest level; `snr`, the median of the foreground above
        black, over the noise that second differences along W show (a proxy: it compares scans of
        one protocol, and resampling smooths it).
    """
    num_foreground = int(np.count_nonzero(foreground))
    qc = {
        "foreground_ml": num_foreground * float(np.prod(spacing_mm)) / 1000,
        "foreground_share": num_foreground / foreground.size,
        "clipped_share": 0.0,
        "snr": 0.0,
    }
    thinned, inside = volume[::EVERY_NTH_SLICE], foreground[::EVERY_NTH_SLICE]
    if not inside[..., 1:-1].any():
        return qc
    extreme = (code == 0) | (code == TOP_LEVEL[modality])
    qc["clipped_share"] = float(np.count_nonzero(extreme & foreground) / num_foreground)
    black = -1000.0 if modality is Modality.CT else float(volume.min())
    bend = thinned[..., 2:] - 2 * thinned[..., 1:-1] + thinned[..., :-2]
    # Of white noise, a second difference has six times the variance; the median absolute
    # deviation is 0.6745 standard deviations and hardly sees edges.
    noise = float(np.median(np.abs(bend[inside[..., 1:-1]]))) / (0.6745 * 6**0.5)
    quantum = (float(volume.max()) - black) / 255 / 12**0.5
    qc["snr"] = (float(np.median(thinned[inside])) - black) / max(noise, quantum)
    return qc
