"""Real vendor series: the right decision for each, and the same volumes as dcm2niix."""

import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from neurovfm_core.deid import ExportParams, Pseudonymizer, export_series
from neurovfm_core.dicom import ConvertedVolume, ConvertParams, convert_series
from neurovfm_core.errors import Excluded, Reason
from neurovfm_core.pacs import FolderSource, SeriesListing

DATA = Path(__file__).parents[2] / ".." / "shared" / "data" / "dicom"
DCM2NIIX = Path(sys.executable).with_name("dcm2niix")
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not DATA.is_dir(), reason="the real data are not beside the repository"),
]
MR_FRUIT = "pacs_fruit/1002/20200705_171157_MR,SR/"
CT_FRUIT = "pacs_fruit/1001/20200705_182823_CT,SR/"

# folder -> sequence class of each volume it holds
CONVERTED = {
    "mr_siemens_t1_sag_hfs": ["T1"],
    "mr_ge_pd_axial": ["PD"],
    "mr_philips_epi_2vol": ["fMRI", "fMRI"],
    "ct_philips_head_study/S2010_std_brain_5mm": ["CT"],
    "enhanced/mr_philips_enhanced_8frames": ["T1"],
    "codec/compressed_j2k": ["FLAIR"],
    "codec/compressed_rle": ["FLAIR"],
    "mosaic/mr_siemens_epi_35slices": ["T2*", "T2*"],
    CT_FRUIT + "Kopf nativ  2.0  H70h": ["CT"],
    CT_FRUIT + "Kopf nativ  5.0  H42s": ["CT"],
    MR_FRUIT + "t1_mprage_tra_nativ": ["T1"],
    MR_FRUIT + "t2_tse_tra 5mm": ["T2"],
}
MULTI_FRAME = {"enhanced/mr_philips_enhanced_8frames", "mosaic/mr_siemens_epi_35slices"}
# The positions of this series are rounded to 0.1 mm and so drift in plane by 0.07 mm a step;
# dcm2niix lets its slices step along the normal.
TOLERANCE_MM = {"mr_ge_pd_axial": 1.4}
ROUNDED_MM = {"mr_ge_pd_axial": 0.11}
# Its slope stands in a private element only. A constant factor of the whole volume does not matter here.
WITHOUT_SLOPE = {"mr_philips_epi_2vol"}
REFUSED = {
    "ct_philips_head_study/S1000_localizer": Reason.LOCALIZER,
    "exclude/mr_ge_3plane_localizer": Reason.LOCALIZER,
    CT_FRUIT + "Topogramm  0.6  T20f": Reason.LOCALIZER,
    MR_FRUIT + "AAHead_Scout": Reason.LOCALIZER,
    "geometry/ct_siemens_uneven_gap_4slices": Reason.UNEVEN_SPACING,
    "exclude/mr_rgb_fusion_secondary_capture": Reason.NOT_GREYSCALE,
    "ct_philips_head_study/S4010_dose_info": Reason.NOT_GREYSCALE,
    CT_FRUIT + "FUJI Basic Text SR for HL7 Radiological Report": Reason.NOT_AN_IMAGE,
}
REFUSED_AT_EXPORT = {
    "exclude/mr_rgb_fusion_secondary_capture": Reason.SECONDARY_CAPTURE,
    "ct_philips_head_study/S4010_dose_info": Reason.SECONDARY_CAPTURE,
    CT_FRUIT + "FUJI Basic Text SR for HL7 Radiological Report": Reason.NOT_AN_IMAGE,
}


def convert(folder, out, params=None):
    return convert_series(folder, out / "nifti" / "stu_x", "ser_x", params or ConvertParams())


def canonical(image):
    """Reorient to RAS: two readers may flip an axis, never move a voxel."""
    image = nibabel.as_closest_canonical(image)
    return np.asarray(image.dataobj), image.affine


def reference_volumes(folder, out):
    """Return dcm2niix's volumes, a 4-D one split by time."""
    out.mkdir()
    # Without -p n Philips values would be scaled by a constant that only the private header holds.
    command = [DCM2NIIX, "-z", "n", "-f", "name", "-b", "y", "-p", "n", "-o", out, folder]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.glob("*.nii")
    image = nibabel.load(path)
    if image.ndim == 3:
        return [image]
    data = np.asarray(image.dataobj)
    return [nibabel.Nifti1Image(data[..., t], image.affine) for t in range(data.shape[3])]


@pytest.mark.parametrize("folder", CONVERTED)
def test_converted_series_agree_with_dcm2niix(folder, tmp_path):
    volumes = convert(DATA / folder, tmp_path)
    assert [volume.sequence_class for volume in volumes] == CONVERTED[folder]
    references = reference_volumes(DATA / folder, tmp_path / "reference")
    assert len(references) == len(volumes)
    for volume, reference in zip(volumes, references, strict=True):
        data, affine = canonical(nibabel.load(tmp_path / volume.outputs[0]))
        wanted_data, wanted_affine = canonical(reference)
        assert data.shape == wanted_data.shape
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]).T
        corners = corners * np.array([*np.array(data.shape) - 1, 1])[:, None]
        assert np.abs(affine @ corners - wanted_affine @ corners).max() < TOLERANCE_MM.get(folder, 1e-3)
        if folder in WITHOUT_SLOPE:
            data, wanted_data = data / data.max(), wanted_data / wanted_data.max()
        assert np.allclose(data, wanted_data, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("folder", [folder for folder in CONVERTED if folder not in MULTI_FRAME])
def test_voxels_lie_where_the_headers_say(folder, tmp_path):
    volumes = convert(DATA / folder, tmp_path)
    affines = [nibabel.load(tmp_path / volume.outputs[0]).affine for volume in volumes]
    places = {
        tuple(np.round((affine @ [0, 0, k, 1])[:3] * [-1, -1, 1], 2))
        for volume, affine in zip(volumes, affines, strict=True)
        for k in range(volume.num_slices)
    }
    headers = [pydicom.dcmread(path, force=True) for path in (DATA / folder).iterdir()]
    stated = [np.array(h.ImagePositionPatient, float) for h in headers if "ImagePositionPatient" in h]
    off_mm = np.array([[np.abs(np.array(place) - one).max() for one in stated] for place in places])
    allowed_mm = ROUNDED_MM.get(folder, 0.02)
    assert off_mm.min(axis=0).max() < allowed_mm and off_mm.min(axis=1).max() < allowed_mm


@pytest.mark.parametrize("folder", REFUSED)
def test_series_that_are_no_volume_are_refused_with_their_reason(folder, tmp_path):
    (refused,) = convert(DATA / folder, tmp_path)
    assert refused.reason is REFUSED[folder]
    assert not list(tmp_path.rglob("*.nii.gz"))


@pytest.mark.parametrize("folder", [*CONVERTED, *REFUSED])
def test_export_keeps_what_conversion_needs(folder, tmp_path):
    """The exported series converts to the same voxels in the same place, or is refused alike."""
    exported = []
    source = FolderSource(DATA / folder)
    for listing in source.listing():
        if isinstance(listing, SeriesListing):
            try:
                exported.append(
                    export_series(
                        listing,
                        source,
                        Pseudonymizer(b"k" * 32),
                        tmp_path / "dicom",
                        ExportParams(require_warehouse=False),
                        None,
                    )
                )
            except Excluded as excluded:
                assert excluded.reason is REFUSED_AT_EXPORT[folder]
                return
    (facts,) = exported
    clean = convert(tmp_path / facts.outputs[0], tmp_path / "clean")
    raw = convert(DATA / folder, tmp_path / "raw")
    assert [type(volume) for volume in clean] == [type(volume) for volume in raw]
    for one, other in zip(clean, raw, strict=True):
        if isinstance(one, ConvertedVolume):
            images = [nibabel.load(tmp_path / "clean" / one.outputs[0])]
            images.append(nibabel.load(tmp_path / "raw" / other.outputs[0]))
            assert np.array_equal(images[0].dataobj, images[1].dataobj)
            assert np.array_equal(images[0].affine, images[1].affine)
            assert one.sequence_class == other.sequence_class
        else:
            assert one.reason is other.reason


@pytest.mark.parametrize("folder", ["codec/compressed_j2k", "codec/compressed_rle", "mr_ge_pd_axial"])
def test_pixels_leave_bit_for_bit_in_their_own_encoding(folder, tmp_path):
    source = FolderSource(DATA / folder)
    pseudonymizer = Pseudonymizer(b"k" * 32)
    (listing,) = source.listing()
    facts = export_series(
        listing, source, pseudonymizer, tmp_path / "dicom", ExportParams(require_warehouse=False), None
    )
    for uid, original in source.instances(listing):
        clean = pydicom.dcmread(tmp_path / facts.outputs[0] / f"{pseudonymizer.instance(uid)}.dcm")
        assert clean.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID
        assert clean.PixelData == original.PixelData


def test_two_encodings_of_the_same_pixels_give_the_same_volume(tmp_path):
    one, other = (
        nibabel.load(tmp_path / name / convert(DATA / f"codec/{name}", tmp_path / name)[0].outputs[0])
        for name in ("compressed_j2k", "compressed_rle")
    )
    assert np.array_equal(one.dataobj, other.dataobj)


def test_a_tilted_gantry_is_corrected_or_refused(tmp_path):
    folder = DATA / "geometry" / "ct_siemens_gantry_tilt_4slices"
    (volume,) = convert(folder, tmp_path)
    assert "tilt_corrected" in volume.flags
    affine = nibabel.load(tmp_path / volume.outputs[0]).affine[:3, :3]
    cosines = (affine / np.linalg.norm(affine, axis=0)).T @ (affine / np.linalg.norm(affine, axis=0))
    assert np.allclose(cosines, np.eye(3), atol=1e-5)
    (refused,) = convert(folder, tmp_path / "strict", ConvertParams(tilt="exclude"))
    assert refused.reason is Reason.GANTRY_TILT


def test_a_cut_file_is_left_out_and_the_gap_named(tmp_path):
    folder = tmp_path / "series"
    shutil.copytree(DATA / "ct_philips_head_study" / "S2010_std_brain_5mm", folder)
    for name, reason in (("I10", None), ("I140", Reason.TRUNCATED)):  # the first slice, then a middle one
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        (volume,) = convert(folder, tmp_path / name)
        if reason is None:
            assert volume.num_slices == 27 and "truncated_dropped" in volume.flags
        else:
            assert volume.reason is reason


def test_the_order_and_names_of_files_play_no_part(tmp_path):
    paths = list((DATA / "mr_philips_epi_2vol").iterdir())
    for folder, order in (("a", 1), ("b", -1)):
        (tmp_path / folder).mkdir()
        for number, path in enumerate(sorted(paths, key=lambda p: p.name[::-order])):
            shutil.copy(path, tmp_path / folder / f"{number:04d}")
    first = convert(tmp_path / "a", tmp_path / "out_a")
    second = convert(tmp_path / "b", tmp_path / "out_b")
    assert [volume.sha256 for volume in first] == [volume.sha256 for volume in second]
