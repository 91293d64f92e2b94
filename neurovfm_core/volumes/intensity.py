"""Intensities: MR to 8 bits, CT to a one-byte code that holds the three display windows.

Over integer HU the triple (brain 8 bit, blood 4 bit, bone 4 bit) takes only 104 values, so
one byte says all three: the code is the number of change points at or below the HU value.
A decode table per window returns exactly the image that windowing at once would have given.
"""

from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from neurovfm_core.errors import Excluded, Reason
from neurovfm_core.vocabulary import WIDTH_LEVEL_HU, Modality, Window

Scalar = TypeVar("Scalar", bound=np.generic)

WINDOW_BITS = {Window.BRAIN: 8, Window.BLOOD: 4, Window.BONE: 4}
"""Paper, "Series Preprocessing"."""
HU_MIN, HU_MAX = -1024, 3071
"""12-bit scanner range; no window changes outside it."""
CLIP_PERCENTILES = (0.5, 99.5)


def windowed_levels(volume_hu: NDArray[np.integer], window: Window) -> NDArray[np.uint8]:
    """Map integer HU through a display window to its stored levels, rounding half up.

    Returns
    -------
    same shape, uint8
        0 to 255 for brain, 0 to 15 for blood and bone.

    Examples
    --------
    >>> windowed_levels(np.array([-10, 0, 40, 80, 900]), Window.BRAIN)
    array([  0,   0, 128, 255, 255], dtype=uint8)
    """
    width, level = WIDTH_LEVEL_HU[window]
    top = 2 ** WINDOW_BITS[window] - 1
    above_hu = np.clip(volume_hu.astype(np.int32) - (level - width // 2), 0, width)
    return ((2 * top * above_hu + width) // (2 * width)).astype(np.uint8)


@cache
def change_points() -> NDArray[np.int16]:
    """Return the integer HU at which any of the three windows takes its next level, ascending."""
    every_hu = np.arange(HU_MIN, HU_MAX + 1)
    changes = np.zeros(len(every_hu) - 1, bool)
    for window in Window:
        changes |= np.diff(windowed_levels(every_hu, window)) != 0
    return _frozen(every_hu[1:][changes].astype(np.int16))


@cache
def _code_of_hu() -> NDArray[np.uint8]:
    codes = np.searchsorted(change_points(), np.arange(HU_MIN, HU_MAX + 1), side="right")
    return _frozen(codes.astype(np.uint8))


def encode_ct(volume_hu: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Round HU to integers (an error of at most 0.5 HU) and return the joint code, 0 to 103."""
    rounded = np.rint(np.clip(volume_hu, HU_MIN, HU_MAX)).astype(np.int16)
    rounded -= HU_MIN
    return np.take(_code_of_hu(), rounded)


@cache
def level_table(window: Window) -> NDArray[np.uint8]:
    """Return (256,): joint code to the level of a window. Codes past the last decode like the last."""
    lowest_hu = np.concatenate([[HU_MIN], change_points()])
    levels = windowed_levels(lowest_hu, window)
    return _frozen(np.pad(levels, (0, 256 - len(levels)), mode="edge"))


def decode_ct(code: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
    """Return the levels of one window: 0 to 255 for brain, 0 to 15 for blood and bone."""
    return np.take(level_table(window), code)


@cache
def decode_table(modality: Modality, window: Window | None) -> NDArray[np.float32]:
    """Return (256,) float32 in [0, 1]: stored byte to decoded intensity.

    Parameters
    ----------
    window
        Of CT; None for MR.
    """
    if (modality is Modality.CT) != (window is not None):
        raise ValueError(f"{modality} with window {window}: CT needs a window, MR has none")
    if window is None:
        return _frozen(np.arange(256, dtype=np.float32) / np.float32(255))
    return _frozen(level_table(window).astype(np.float32) / np.float32(2 ** WINDOW_BITS[window] - 1))


def windows_of(modality: Modality) -> tuple[Window | None, ...]:
    """Return the images that a stored volume of a modality decodes to."""
    return tuple(Window) if modality is Modality.CT else (None,)


def clip_limits(volume: NDArray[np.floating]) -> tuple[float, float]:
    """Return the 0.5 and 99.5 percentile of a whole MR volume, linearly interpolated.

    Raises
    ------
    Excluded
        IMPLAUSIBLE_INTENSITY if both are equal: 99 % of the volume is one value.
    """
    low, high = (float(limit) for limit in np.percentile(volume, CLIP_PERCENTILES))
    if not high > low:
        raise Excluded(Reason.IMPLAUSIBLE_INTENSITY, "no contrast: 99 % of the voxels have one value")
    return low, high


def encode_mr(volume: NDArray[np.floating], low: float, high: float) -> NDArray[np.uint8]:
    """Clip to [low, high] and round to the nearest of 256 levels."""
    scaled = (np.clip(volume, low, high) - low) * (255 / (high - low))
    return np.rint(scaled).astype(np.uint8)


def otsu(counts: NDArray[np.integer]) -> int:
    """Return the threshold that splits a histogram into the two classes furthest apart.

    Parameters
    ----------
    counts : (levels,)

    Returns
    -------
    int
        The upper class is `level > threshold`.

    References
    ----------
    N. Otsu, "A threshold selection method from gray-level histograms", 1979.
    """
    weights = counts / max(1, counts.sum())
    below = np.cumsum(weights)
    sum_below = np.cumsum(weights * np.arange(len(counts)))
    spread = below * (1 - below)
    between = (sum_below[-1] * below - sum_below) ** 2 / np.maximum(spread, 1e-12)
    return int(np.where(spread > 1e-12, between, 0).argmax())


def _frozen(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """Make a cached table read-only: it is shared by every caller."""
    array.flags.writeable = False
    return array
