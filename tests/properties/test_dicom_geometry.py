"""Laws of geometry: every voxel centre lies where the headers put it, in any order of slices."""

import numpy as np
import pydicom
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from neurovfm_core.dicom.frames import Frame, Kind
from neurovfm_core.dicom.geometry import by_place, stack, to_ras, unsheared
from neurovfm_core.dicom.pixels import PixelLayout

angles = st.floats(-np.pi, np.pi)
small = st.floats(-200, 200)
spacings = st.floats(0.2, 8)
FEW = settings(max_examples=60, deadline=None)


def rotation(a, b, c):
    def about(axis, angle):
        matrix = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        matrix[[i, i, j, j], [i, j, i, j]] = [np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)]
        return matrix

    return about(0, a) @ about(1, b) @ about(2, c)


def frames(axes, spacing, step_mm, origin, count, numbers):
    layout = PixelLayout(None, 4, 5, 1, 16, 16, 15, True, False, 0)
    return [
        Frame(
            layout=layout,
            index=0,
            tile=None,
            header=Dataset(),
            sop_uid=pydicom.uid.generate_uid(entropy_srcs=[str(k)]),
            kind=Kind(),
            repeat_key=(0.0, 0.0, float(numbers[k]), 0.0),
            position_mm=tuple(np.array(origin) + k * step_mm * axes[:, 2]),
            orientation=(*axes[:, 0], *axes[:, 1]),
            spacing_mm=spacing,
            slope=1.0,
            intercept=0.0,
        )
        for k in range(count)
    ]


@FEW
@given(
    turn=st.tuples(angles, angles, angles),
    spacing=st.tuples(spacings, spacings),
    step_mm=spacings,
    origin=st.tuples(small, small, small),
    count=st.integers(4, 12),
    seed=st.integers(0, 999),
)
def test_the_affine_maps_every_voxel_centre_to_its_place(turn, spacing, step_mm, origin, count, seed):
    axes = rotation(*turn)
    rng = np.random.default_rng(seed)
    made = frames(axes, spacing, step_mm, origin, count, rng.permutation(count))
    shuffled = [made[k] for k in rng.permutation(count)]
    places = by_place(shuffled)
    ordered = [place[0] for place in places]
    assert ordered == made and all(len(place) == 1 for place in places)
    result = stack(ordered)
    assert not result.tilted
    for k, frame in enumerate(made):
        i, j = int(rng.integers(5)), int(rng.integers(4))
        # PS3.3 C.7.6.2.1.1: column index moves along a row by the spacing between columns.
        place = np.array(frame.position_mm) + i * spacing[1] * axes[:, 0] + j * spacing[0] * axes[:, 1]
        assert np.allclose((result.affine @ [i, j, k, 1])[:3], place, atol=1e-9)
        assert np.allclose((to_ras(result.affine) @ [i, j, k, 1])[:3], place * [-1, -1, 1], atol=1e-9)


@FEW
@given(turn=st.tuples(angles, angles, angles), count=st.integers(4, 9), tilt=st.floats(-0.4, 0.4))
def test_a_stack_is_tilted_when_its_steps_lean(turn, count, tilt):
    axes = rotation(*turn)
    leaning = axes.copy()
    leaning[:, 2] = axes[:, 2] * np.cos(tilt) + axes[:, 1] * np.sin(tilt)
    made = frames(leaning, (1.0, 1.0), 3.0, (0, 0, 0), count, range(count))
    assert stack(made).tilted == (np.cos(tilt) < 0.9998)


@FEW
@given(
    drift=st.tuples(st.floats(-2.5, 2.5), st.floats(-2.5, 2.5)),
    turn=st.tuples(angles, angles, angles),
    seed=st.integers(0, 99),
)
def test_straightening_keeps_linear_images_where_they_are(drift, turn, seed):
    """Linear interpolation is exact on a linear image, so world coordinates must come out unchanged."""
    axes = rotation(*turn)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = axes[:, 0] * 0.7, axes[:, 1] * 0.9
    affine[:3, 2] = axes[:, 2] * 3 + axes[:, 0] * drift[0] + axes[:, 1] * drift[1]
    affine[:3, 3] = np.random.default_rng(seed).normal(size=3) * 50
    shape = (9, 8, 6)
    weights = np.random.default_rng(seed).normal(size=3)

    def image(matrix, size):
        index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
        return (index @ matrix[:3, :3].T + matrix[:3, 3]) @ weights

    outside = -1e7
    volume, straight = unsheared(image(affine, shape), affine, outside)
    steps = straight[:3, :3] / np.linalg.norm(straight[:3, :3], axis=0)
    assert np.allclose(steps.T @ steps, np.eye(3), atol=1e-3)
    inside = volume > -1e4  # not mixed with what lies outside
    assert inside.sum() >= 7 * 6 * 6 * 0.9
    assert np.allclose(volume[inside], image(straight, volume.shape)[inside], atol=1e-6)
