"""Resampling on axis-aligned grids: one small matrix per axis, applied as banded GEMMs.

After orientation both grids are parallel, so interpolation separates and each axis is a
matrix `M = W B^-1`: `B` turns cubic B-spline coefficients into samples (1/6, 4/6, 1/6,
mirrored ends), `W` evaluates the spline at the new positions. See Unser, "Splines: a
perfect fit for signal and image processing", 1999.

Anti-aliasing: a sample already averages over its own spacing. Where the target is coarser
by a ratio r > 1, the spline is averaged over a box of `sqrt(r^2 - 1)` samples, so that box
variances add up to those of a target voxel. At r = 1 that is plain interpolation: there
is no step between the two.
"""

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy.linalg import solve_banded
from threadpoolctl import ThreadpoolController

NEGLIGIBLE = 1e-9
"""The inverse decays into float32 denormals, which make the same GEMM 13 times slower."""
BAND_ROWS = 32
"""Rows applied at once: few calls, little beside the band. Measured best of 8 to 64."""
SLAB_VOXELS = 1 << 19
"""Voxels converted to float at once: they stay in the cache for the two GEMMs after it."""


@dataclass(frozen=True)
class AxisMap:
    """Where the new samples of one axis lie: output k sits at input index `first + k * step`."""

    num_in: int
    num_out: int
    first: float
    step: float


@dataclass(frozen=True, eq=False)
class Operator:
    """The matrix of one axis, and its band as dense blocks."""

    matrix: NDArray[np.floating]  # (num_out, num_in), rows sum to 1
    bands: tuple[tuple[slice, slice], ...]  # (rows, columns) of blocks that hold every non-zero entry


def centred_map(num_in: int, spacing_mm: float, target_mm: float) -> AxisMap:
    """Cover the same field of view, to the nearest voxel, with both grids about one centre."""
    num_out = max(1, int(num_in * spacing_mm / target_mm + 0.5))
    step = target_mm / spacing_mm
    return AxisMap(num_in, num_out, (num_in - 1) / 2 - step * (num_out - 1) / 2, step)


@lru_cache(maxsize=128)
def antialiased_operator(axis: AxisMap) -> Operator:
    """Return the float32 operator that interpolates upwards and averages downwards.

    Beyond the first and last sample the volume is taken as constant, never as 0.
    """
    position = axis.first + axis.step * np.arange(axis.num_out)
    last = axis.num_in - 1
    width = np.sqrt(max(axis.step**2 - 1, 0.0))
    if width < 1e-3:
        weights = _spline_weights(np.clip(position, 0.0, last), axis.num_in)
    else:
        start, stop = position - width / 2, position + width / 2
        inside = _spline_integrals(np.clip(start, 0, last), np.clip(stop, 0, last), axis.num_in)
        ends = _spline_weights(np.array([0.0, last]), axis.num_in)
        before = np.clip(-start, 0, width)[:, None] * ends[0]
        after = np.clip(stop - last, 0, width)[:, None] * ends[1]
        weights = (inside + before + after) / width
    return _operator(weights, np.float32)


@lru_cache(maxsize=128)
def interpolation_operator(axis: AxisMap) -> Operator:
    """Return the float64 operator of ITK's cubic B-spline resampling: no low-pass, 0 outside."""
    position = axis.first + axis.step * np.arange(axis.num_out)
    weights = _spline_weights(position, axis.num_in)
    weights[(position < -0.5) | (position >= axis.num_in - 0.5)] = 0
    return _operator(weights, np.float64)


def resample(array: NDArray[np.generic], operators: tuple[Operator, Operator, Operator]) -> NDArray[np.floating]:
    """Apply one operator per axis.

    Parameters
    ----------
    array : (D, H, W) real number
        Any strides: a flipped or transposed view costs nothing extra.

    Returns
    -------
    (D', H', W') in the dtype of the operators
    """
    order = np.argsort([-abs(stride) for stride in array.strides], kind="stable")
    # How BLAS divides a product among threads decides last digits, and those decide a level now and then.
    with _blas().limit(limits=1, user_api="blas"):
        out = _applied(array.transpose(order), *(operators[axis] for axis in order))
    return out.transpose(np.argsort(order))


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _applied(stored: NDArray[np.generic], slow: Operator, middle: Operator, fast: Operator) -> NDArray[np.floating]:
    """Resample an array whose axes are in the order of memory, slowest first."""
    dtype = slow.matrix.dtype
    num_slow, num_middle, num_fast = stored.shape
    planes = np.empty((num_slow, len(middle.matrix), len(fast.matrix)), dtype)
    slab = max(1, SLAB_VOXELS // (num_middle * num_fast))
    buffer = np.empty((slab, num_middle, num_fast), dtype)
    narrow = np.empty((slab, num_middle, len(fast.matrix)), dtype)
    for start in range(0, num_slow, slab):
        part = planes[start : start + slab]
        n = len(part)
        np.copyto(buffer[:n], stored[start : start + n], casting="unsafe")
        flat = buffer.reshape(-1, num_fast)[: n * num_middle]
        flat_out = narrow.reshape(-1, narrow.shape[2])[: n * num_middle]
        for rows, columns in fast.bands:
            np.matmul(flat[:, columns], fast.matrix[rows, columns].T, out=flat_out[:, rows])
        for rows, columns in middle.bands:
            np.matmul(middle.matrix[rows, columns], narrow[:n, columns], out=part[:, rows])
    out = np.empty((len(slow.matrix), *planes.shape[1:]), dtype)
    flat, flat_out = planes.reshape(num_slow, -1), out.reshape(len(out), -1)
    for rows, columns in slow.bands:
        np.matmul(slow.matrix[rows, columns], flat[columns], out=flat_out[rows])
    return out


def _operator(weights: NDArray[np.float64], dtype: DTypeLike) -> Operator:
    """Turn weights of spline coefficients into weights of samples."""
    num_out, num_in = weights.shape
    matrix = weights
    if num_in > 1:
        # M B = W, hence B^T M^T = W^T: one tridiagonal solve instead of an inverse.
        transposed = np.empty((3, num_in))
        transposed[0], transposed[1], transposed[2] = 1 / 6, 4 / 6, 1 / 6
        transposed[0, -1] = transposed[2, 0] = 2 / 6
        matrix = solve_banded((1, 1), transposed, weights.T).T
    matrix = np.where(np.abs(matrix) < NEGLIGIBLE, 0, matrix).astype(dtype)
    bands = []
    for start in range(0, num_out, BAND_ROWS):
        rows = slice(start, min(start + BAND_ROWS, num_out))
        used = np.flatnonzero(matrix[rows].any(axis=0))
        columns = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)
        bands.append((rows, columns))
    return Operator(np.ascontiguousarray(matrix), tuple(bands))


def _spline_weights(position: NDArray[np.floating], num_in: int) -> NDArray[np.float64]:
    """Return (positions, num_in): what each coefficient gives to the spline at a position."""
    knots = np.arange(-2, num_in + 2)
    return _mirrored(_truncated_powers(position[:, None] - knots, 3), num_in)


def _spline_integrals(start: NDArray[np.float64], stop: NDArray[np.float64], num_in: int) -> NDArray[np.float64]:
    """Return (intervals, num_in): what each coefficient gives to the integral of the spline."""
    knots = np.arange(-2, num_in + 2)
    integral = _truncated_powers(stop[:, None] - knots, 4) - _truncated_powers(start[:, None] - knots, 4)
    return _mirrored(integral, num_in)


def _truncated_powers(x: NDArray[np.floating], degree: int) -> NDArray[np.float64]:
    """Return the cubic B-spline (degree 3) or its integral from minus infinity (degree 4)."""
    x = np.clip(x, -2, 2)
    terms = (1, -4, 6, -4)
    scale = 6 if degree == 3 else 24
    powers = np.stack([term * np.maximum(x + 2 - k, 0) ** degree for k, term in enumerate(terms)])
    return powers.sum(axis=0) / scale


def _mirrored(weights: NDArray[np.float64], num_in: int) -> NDArray[np.float64]:
    """Fold the two coefficients beyond either end back: whole-sample mirror, c(-j) = c(j)."""
    if num_in == 1:
        return weights.sum(axis=1, keepdims=True)
    period = 2 * (num_in - 1)
    knots = np.arange(-2, num_in + 2) % period
    folded = np.zeros((len(weights), num_in))
    np.add.at(folded.T, np.minimum(knots, period - knots), weights.T)
    return folded
