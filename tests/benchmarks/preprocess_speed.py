"""Time `prepare` against the plain SimpleITK way, both from memory and on one thread.

    python tests/benchmarks/preprocess_speed.py [--repeats 5]

The plain way reorients, resamples with ITK's cubic B-spline to the common grid, clips and windows
with numpy, and makes no foreground beyond a threshold. Prints one line per volume and preset: CPU
seconds (the fastest of the repeats; the first, which builds the tables of a geometry, apart), the
ratio, and how far the results are apart: the preset `official` does what the plain way does, so its
levels must agree to one count; `paper` adds anti-aliasing and a real foreground mask, so only its time is compared.
"""

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import scipy.ndimage
import SimpleITK as sitk
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from neurovfm_core.vocabulary import PATCH_SHAPE, WIDTH_LEVEL_HU, Modality, Window
from neurovfm_core.volumes import PreprocessParams, Volume, decode_ct, prepare

Result = TypeVar("Result")
CASES = {  # shape, spacing in mm; the last axis is the slice axis
    Modality.MR: ((256, 256, 180), (1.0, 1.0, 1.0)),
    Modality.CT: ((512, 512, 40), (0.45, 0.45, 5.0)),
}


def synthetic(modality: Modality) -> Volume:
    """Return a textured ellipsoid in air, as LPS-stored integers (the order of DICOM)."""
    shape, spacing = CASES[modality]
    rng = np.random.default_rng(0)
    texture = scipy.ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), 1.5)
    texture /= texture.std()
    radius = sum(
        ((np.arange(n) / (n - 1) * 2 - 1) / 0.8).reshape(np.roll((-1, 1, 1), a)) ** 2 for a, n in enumerate(shape)
    )
    if modality is Modality.MR:
        array = np.where(radius < 1, 500 + 120 * texture, 0) + 8 * np.abs(rng.standard_normal(shape, np.float32))
    else:
        array = np.where(radius < 1, np.where(radius > 0.9, 900, 35), -1000) + 10 * texture
    return Volume(np.rint(array).astype(np.int16), np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]), modality, 2)


def itk_image(volume: Volume) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T))
    image.SetSpacing(volume.spacing_mm)
    lps = np.diag([-1.0, -1.0, 1.0]) @ volume.affine[:3, :3]
    image.SetDirection((lps / volume.spacing_mm).ravel())
    return image


def plain(image: sitk.Image, modality: Modality) -> tuple[dict[Window | None, NDArray[np.uint8]], NDArray[np.bool_]]:
    """Return 8-bit images (4-bit for blood and bone) and a foreground, by SimpleITK and numpy."""
    image = sitk.DICOMOrient(image, "RPI")
    target = (1.0, 1.0, 4.0)
    size = [int(n * (mm / to)) for n, mm, to in zip(image.GetSize(), image.GetSpacing(), target, strict=True)]
    pixel = image.GetPixelID()
    out = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkBSpline, image.GetOrigin(), target, image.GetDirection(), 0, pixel
    )
    array = sitk.GetArrayFromImage(out)
    excess = [n % patch for n, patch in zip(array.shape, PATCH_SHAPE, strict=True)]
    array = array[tuple(slice(e // 2, n - (e - e // 2)) for e, n in zip(excess, array.shape, strict=True))]
    values = array.astype(np.float64)
    if modality is Modality.MR:
        low, high = np.percentile(values, (0.5, 99.5))
        scaled = (np.clip(values, low, high) - low) / (high - low + 1e-8)
        return {None: np.floor(255 * scaled).astype(np.uint8)}, values > np.percentile(values, 10)
    levels: dict[Window | None, NDArray[np.uint8]] = {}
    for window, (width, level) in WIDTH_LEVEL_HU.items():
        top = 255 if window is Window.BRAIN else 15
        low = level - width / 2
        levels[window] = np.floor(top * (np.clip(values, low, low + width) - low) / width + 0.5).astype(np.uint8)
    return levels, values > -500


def timed(work: Callable[[], Result], repeats: int) -> tuple[Result, float, float]:
    """Return the result, CPU seconds of the first call, and of the fastest."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        result = work()
        seconds.append(time.process_time() - started)
    return result, seconds[0], min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    for modality in CASES:
        volume = synthetic(modality)
        image = itk_image(volume)
        (images, foreground), _, plain_s = timed(lambda i=image, m=modality: plain(i, m), repeats)
        shape = "x".join(map(str, volume.array.shape))
        print(f"{modality} {shape} plain_itk cpu_s={plain_s:.3f}")
        for preset in ("paper", "official"):
            params = PreprocessParams(preset=preset)
            prepared, first_s, fastest_s = timed(lambda v=volume, p=params: prepare(v, p), repeats)
            line = f"{modality} {shape} {preset} cpu_s={fastest_s:.3f} first_s={first_s:.3f}"
            line += f" ratio={plain_s / fastest_s:.1f}"
            if preset == "official":
                for window, expected in images.items():
                    found = prepared.code if window is None else decode_ct(prepared.code, window)
                    off = np.abs(found.astype(int) - expected)
                    # One HU is up to 4 of the 255 brain levels; elsewhere a count is a level.
                    assert off.max() <= (4 if window is Window.BRAIN else 1), (window, off.max())
                    line += f" {window or 'image'}_equal={(off == 0).mean():.5f} max_off={off.max()}"
                # MR: where the 10th percentile falls into integer noise, one count decides; so not asserted.
                same = (prepared.foreground == foreground).mean()
                assert modality is Modality.MR or same > 0.9999, same
                line += f" foreground_equal={same:.5f}"
            print(line)


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
