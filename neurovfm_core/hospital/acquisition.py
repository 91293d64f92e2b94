"""The synthetic scanner: a head and a protocol become a stack of slices with DICOM geometry.

Coordinates are DICOM patient coordinates: x to the Left, y to Posterior, z to Superior (LPS), mm.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from neurovfm_core.hospital.anatomy import Head
from neurovfm_core.hospital.contrast import Tissue, blend, tissue_values

Sequence = Literal["T1", "T1C", "T2", "FLAIR", "DWI", "ADC", "SWI", "CT", "CT_BONE"]
View = Literal["axial", "coronal", "sagittal"]

# (row direction, column direction) as DICOM writes them: along a row, then down a column.
_DIRECTIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
}
# Where the technologist puts the middle of the stack, in the frame of the head.
_FOV_CENTER_MM = {"axial": (0.0, -4.0, 16.0), "coronal": (0.0, 0.0, 8.0), "sagittal": (0.0, -4.0, 8.0)}


@dataclass(frozen=True, slots=True)
class Protocol:
    """What the technologist chose. `slice_spacing_mm` is between slice centres."""

    sequence: Sequence
    view: View
    in_plane_mm: float
    slice_spacing_mm: float
    slice_thickness_mm: float
    rows: int
    columns: int
    num_slices: int
    oblique_deg: tuple[float, float] = (0.0, 0.0)
    """Tilt of the stack about its row direction, then about its column direction."""
    fov_circle: bool = False
    motion: bool = False
    offset_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """By how much the technologist missed the middle of the head (LPS)."""


@dataclass(frozen=True, slots=True)
class Acquisition:
    """One stack of slices as the scanner has it, before any vendor's DICOM habits."""

    pixels: NDArray[np.int16]  # (slices, rows, columns)
    image_orientation: tuple[float, float, float, float, float, float]  # row, then column direction, LPS
    image_positions: NDArray[np.float64]  # (slices, 3) LPS mm, centre of the first voxel of each slice
    pixel_spacing: tuple[float, float]  # between rows, between columns, mm
    slice_thickness: float
    masks: dict[str, NDArray[np.bool_]]  # label -> (slices, rows, columns); empty where it is out of view
    units: Literal["HU", "arbitrary"]
    padding_value: int | None


def mr_protocols(rng: np.random.Generator, scale: float = 1.0) -> tuple[Protocol, ...]:
    """Draw the series of one MR study: three to five, at times one of them 3D T1.

    ADC is computed from DWI, so the two share their geometry.

    Parameters
    ----------
    scale
        Multiplies the matrix and divides the pixel spacing; about 2 is what hospitals acquire.
    """
    kinds: list[Sequence]
    if rng.random() < 0.55:
        kinds = ["T1", "T1C", "FLAIR", "T2"]
    else:
        kinds = ["FLAIR", "T2", "T1" if rng.random() < 0.6 else "SWI"]
    if len(kinds) == 3 or rng.random() < 0.3:
        kinds.append("DWI")
    if "DWI" in kinds and len(kinds) < 5 and rng.random() < 0.85:
        kinds.append("ADC")
    elif len(kinds) > 3 and rng.random() < 0.3:
        kinds.remove("T2")
    thin = kinds[0] if rng.random() < 0.15 and kinds[0] == "T1" else None
    protocols: list[Protocol] = []
    for kind in kinds:
        if kind == "ADC":
            protocols.append(replace(protocols[-1], sequence="ADC"))
        elif kind == thin:
            protocols.append(_mr_volume(rng, kind, scale))
        else:
            protocols.append(_mr_stack(rng, kind, scale))
    return tuple(protocols)


def _mr_stack(rng: np.random.Generator, sequence: Sequence, scale: float) -> Protocol:
    """Draw a 2D series: thick slices with gaps, in any of the three views."""
    view: View = "axial"
    if sequence in ("T1", "T1C", "T2") and rng.random() < 0.35:
        view = "sagittal" if sequence == "T1" else "coronal"
    thickness = float(rng.choice([4.0, 5.0, 5.0, 6.0]))
    spacing = thickness + float(rng.choice([0.0, 0.5, 1.0, 1.3]))
    echo_planar = sequence in ("DWI", "ADC")
    in_plane = 1.8 if echo_planar else float(rng.choice([1.2, 1.3, 1.4]))
    rows = int(np.ceil(236 / in_plane / 16)) * 16
    columns = rows if echo_planar or view == "sagittal" else rows - 16 * int(rng.integers(0, 3))
    num_slices = int(np.ceil({"axial": 140, "coronal": 185, "sagittal": 140}[view] / spacing))
    if rng.random() < 0.06:
        num_slices -= int(rng.integers(4, 9))  # the scan that was stopped early
    tilted = rng.random() < 0.6
    oblique = (float(rng.normal(0, 5)), float(rng.normal(0, 2))) if tilted else (0.0, 0.0)
    return Protocol(
        sequence=sequence,
        view=view,
        in_plane_mm=round(in_plane / scale, 4),
        slice_spacing_mm=spacing,
        slice_thickness_mm=thickness,
        rows=round(rows * scale),
        columns=round(columns * scale),
        num_slices=num_slices,
        oblique_deg=(round(oblique[0], 2), round(oblique[1], 2)),
        motion=bool(rng.random() < 0.1),
        offset_mm=_offset(rng),
    )


def _mr_volume(rng: np.random.Generator, sequence: Sequence, scale: float) -> Protocol:
    """Draw a 3D series: thin slices without gaps."""
    spacing = float(rng.choice([1.0, 1.2, 1.5]))
    view: View = "sagittal" if rng.random() < 0.7 else "axial"
    return Protocol(
        sequence=sequence,
        view=view,
        in_plane_mm=round(1.5 / scale, 4),
        slice_spacing_mm=spacing,
        slice_thickness_mm=spacing,
        rows=round(160 * scale),
        columns=round(160 * scale),
        num_slices=int((165 if view == "sagittal" else 190) / spacing),
        motion=bool(rng.random() < 0.15),
        offset_mm=_offset(rng),
    )


def ct_protocols(rng: np.random.Generator, scale: float = 1.0) -> tuple[Protocol, ...]:
    """Draw the series of one CT study: a soft kernel, often a bone kernel, at times another view.

    Parameters
    ----------
    scale
        Multiplies the matrix and divides the pixel spacing; about 2.5 is what hospitals acquire.
    """
    in_plane = float(rng.choice([1.15, 1.2, 1.3]))
    matrix = round(int(np.ceil(232 / in_plane / 16)) * 16 * scale)
    circle = bool(rng.random() < 0.5)
    offset = _offset(rng)
    plans: list[tuple[Sequence, View, float]] = [("CT", "axial", float(rng.choice([5.0, 5.0, 5.0, 4.0, 4.8])))]
    if rng.random() < 0.65:
        plans.append(("CT_BONE", "axial", float(rng.choice([2.5, 3.0, 5.0]))))
    if rng.random() < 0.3:
        plans.append(("CT", "coronal" if rng.random() < 0.6 else "sagittal", 3.0))
    cut_short = int(rng.integers(4, 9)) if rng.random() < 0.05 else 0
    return tuple(
        Protocol(
            sequence=sequence,
            view=view,
            in_plane_mm=round(in_plane / scale, 4),
            slice_spacing_mm=step,
            slice_thickness_mm=step,
            rows=matrix,
            columns=matrix,
            num_slices=int(np.ceil({"axial": 155, "coronal": 200, "sagittal": 160}[view] / step)) - cut_short,
            fov_circle=circle and view == "axial",
            offset_mm=offset,
        )
        for sequence, view, step in plans
    )


def _offset(rng: np.random.Generator) -> tuple[float, float, float]:
    x, y, z = rng.normal(0, 2.5, 3).round(2)
    return (float(x), float(y), float(z))


def acquire(head: Head, protocol: Protocol, rng: np.random.Generator) -> Acquisition:
    """Scan a head.

    Returns
    -------
    Acquisition
        Slices ordered along the cross product of the row and the column direction (axial: upward).
        CT in HU, at least -1024 inside the field of view; MR at an arbitrary scale, at least 0
        (ADC in 1e-6 mm^2/s).
    """
    row, column = _directions(protocol)
    normal = np.cross(row, column)
    step_mm = np.array([protocol.slice_spacing_mm, protocol.in_plane_mm, protocol.in_plane_mm])
    axes = np.stack([normal, column, row], axis=1)  # array axes of the stack, as columns
    shape = (protocol.num_slices, protocol.rows, protocol.columns)
    center = head.to_lps(np.array(_FOV_CENTER_MM[protocol.view])) + protocol.offset_mm
    first = center - axes @ (step_mm * (np.array(shape) - 1) / 2)
    to_grid = np.linalg.inv(head.affine)
    matrix = to_grid[:3, :3] @ (axes * step_mm)
    offset = to_grid[:3, :3] @ first + to_grid[:3, 3]

    values = tissue_values(protocol.sequence, rng)
    image = blend(values, head.below, head.above, head.share)
    if protocol.sequence.startswith("CT"):
        image += head.texture * 25
    elif protocol.sequence != "ADC":
        image *= 1 + head.texture
    slab_axis = int(np.argmax(np.abs(matrix[:, 0])))
    slab = max(1, round(protocol.slice_thickness_mm / head.spacing_mm))
    ndimage.uniform_filter1d(image, slab, axis=slab_axis, output=image, mode="nearest")
    outside = float(values[Tissue.AIR])
    stack = ndimage.affine_transform(image, matrix, offset, output_shape=shape, order=1, mode="constant", cval=outside)
    masks = {label: _sample_mask(mask, matrix, offset, shape, slab_axis, slab) for label, mask in head.masks.items()}
    padding: int | None = None
    if protocol.sequence.startswith("CT"):
        _lay_on_table(stack, first, axes * step_mm, head)
        pixels, padding = _finish_ct(stack, protocol, rng)
    else:
        pixels = _finish_mr(stack, protocol, rng)
    positions = first + np.arange(shape[0])[:, None] * normal * protocol.slice_spacing_mm
    return Acquisition(
        pixels=pixels,
        image_orientation=tuple(float(part) for part in (*row, *column)),  # type: ignore[arg-type]
        image_positions=positions,
        pixel_spacing=(protocol.in_plane_mm, protocol.in_plane_mm),
        slice_thickness=protocol.slice_thickness_mm,
        masks=masks,
        units="HU" if protocol.sequence.startswith("CT") else "arbitrary",
        padding_value=padding,
    )


def _directions(protocol: Protocol) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    row, column = (np.array(axis, dtype=float) for axis in _DIRECTIONS[protocol.view])
    first, second = np.radians(protocol.oblique_deg)
    turn = _rotation(column, second) @ _rotation(row, first)
    return turn @ row, turn @ column


def _rotation(axis: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """Rodrigues' rotation about a unit axis."""
    cross = np.cross(np.eye(3), axis)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _sample_mask(
    mask: NDArray[np.bool_],
    matrix: NDArray[np.float64],
    offset: NDArray[np.float64],
    shape: tuple[int, int, int],
    slab_axis: int,
    slab: int,
) -> NDArray[np.bool_]:
    """Return where a structure fills at least 40 % of the acquired voxel; only its own box is resampled."""
    sampled = np.zeros(shape, dtype=bool)
    box = ndimage.find_objects(mask.astype(np.uint8))
    if not box or box[0] is None:
        return sampled
    low = np.maximum([part.start - slab - 1 for part in box[0]], 0)
    high = np.minimum([part.stop + slab + 1 for part in box[0]], mask.shape)
    soft = mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].astype(np.float32)
    ndimage.uniform_filter1d(soft, slab, axis=slab_axis, output=soft, mode="constant")
    corners = np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, 8)
    landed = np.linalg.inv(matrix) @ (corners - offset[:, None])
    start = np.clip(np.floor(landed.min(axis=1)).astype(int), 0, shape)
    stop = np.clip(np.ceil(landed.max(axis=1)).astype(int) + 1, 0, shape)
    if (stop <= start).any():
        return sampled
    there = ndimage.affine_transform(
        soft, matrix, offset + matrix @ start - low, output_shape=tuple(stop - start), order=1
    )
    sampled[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = there >= 0.4
    return sampled


def _finish_mr(stack: NDArray[np.float32], protocol: Protocol, rng: np.random.Generator) -> NDArray[np.int16]:
    """Add what an MR scanner adds: coil shading, ghosts, Rician noise, zero filling, its own scale."""
    quantitative = protocol.sequence == "ADC"
    if protocol.sequence in ("DWI", "ADC"):
        stack = ndimage.gaussian_filter(stack, (0, 0.7, 0.7))
    if not quantitative:
        for axis, length in enumerate(stack.shape):
            along = np.linspace(-1, 1, length, dtype=np.float32)
            shading = 1 + rng.normal(0, 0.07) * along - abs(rng.normal(0, 0.10)) * along**2
            stack *= shading.reshape([-1 if a == axis else 1 for a in range(3)]).astype(np.float32)
    phase_axis = 1 if rng.random() < 0.5 else 2
    if protocol.motion:
        lag = int(rng.integers(6, 30))
        ghost = np.roll(stack, lag, axis=phase_axis) + np.roll(stack, -lag, axis=phase_axis)
        stack = stack + np.float32(rng.uniform(0.04, 0.09)) * ghost
        ndimage.uniform_filter1d(stack, 3, axis=phase_axis, output=stack)
    sigma = np.float32(rng.uniform(0.010, 0.026) * (1.5 if protocol.sequence == "DWI" else 1.0))
    noise = rng.standard_normal((2, *stack.shape), dtype=np.float32) * sigma
    if quantitative:
        # Scanners compute ADC only where there is signal; elsewhere they write zero.
        stack = np.where(stack > 150, stack * (1 + 2 * noise[0]), 0)
        return np.clip(np.rint(stack), 0, 4095).astype(np.int16)
    signal = np.sqrt((stack + noise[0]) ** 2 + noise[1] ** 2)
    if rng.random() < 0.3:
        margin = stack.shape[2] // 16
        signal[:, :, :margin] = 0
        signal[:, :, -margin:] = 0
    scale = rng.uniform(250, 2500)
    return np.clip(np.rint(signal * scale), 0, 4095).astype(np.int16)


def _lay_on_table(
    stack: NDArray[np.float32], first: NDArray[np.float64], steps: NDArray[np.float64], head: Head
) -> None:
    """Draw the headrest below the head: a thin curved shell over foam, fixed to the scanner."""
    index = [
        np.arange(length).reshape([-1 if a == axis else 1 for a in range(3)]) for axis, length in enumerate(stack.shape)
    ]
    origin = head.to_lps(np.zeros(3))
    back = head.to_lps(np.array([0.0, 107.0, 10.0]))[1]
    x, y = (
        (first[part] + sum(steps[part, axis] * index[axis] for axis in range(3))).astype(np.float32) for part in (0, 1)
    )
    depth = y - np.float32(back + 3) + (x - np.float32(origin[0])) ** 2 / 260
    air = stack < -900
    stack[air & (depth > 0) & (depth < 26)] = -940
    stack[air & (np.abs(depth - 1.5) < 2.5)] = 60
    stack[air & (np.abs(depth - 24.5) < 2.0)] = 120


def _finish_ct(
    stack: NDArray[np.float32], protocol: Protocol, rng: np.random.Generator
) -> tuple[NDArray[np.int16], int | None]:
    """Add a CT's noise and kernel; return the pixels and the padding value outside a round field of view."""
    noise = rng.standard_normal(stack.shape, dtype=np.float32)
    thin = np.sqrt(5 / protocol.slice_thickness_mm)
    if protocol.sequence == "CT_BONE":
        stack += 0.9 * (stack - ndimage.gaussian_filter(stack, (0, 1.0, 1.0)))
        stack += noise * np.float32(rng.uniform(14, 24) * thin)
    else:
        noise = ndimage.gaussian_filter(noise, (0, 0.65, 0.65))
        stack += noise * np.float32(rng.uniform(1.8, 3.4) * thin / noise.std())
    pixels = np.clip(np.rint(stack), -1024, 3071).astype(np.int16)
    if not protocol.fov_circle:
        return pixels, None
    padding = int(rng.choice([-2000, -3024]))
    y, x = np.ogrid[: protocol.rows, : protocol.columns]
    middle_y, middle_x = (protocol.rows - 1) / 2, (protocol.columns - 1) / 2
    outside = (y - middle_y) ** 2 + (x - middle_x) ** 2 > (max(protocol.rows, protocol.columns) / 2) ** 2
    pixels[:, outside] = padding
    return pixels, padding
