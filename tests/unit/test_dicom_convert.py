"""Every series becomes its volumes or a reason: grouping, order, spacing, intensities."""

import gzip
import json

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ImplicitVRLittleEndian, MRImageStorage, RLELossless
from pydicom.uid import DeflatedExplicitVRLittleEndian as Deflated
from pydicom.uid import ExplicitVRLittleEndian as Explicit
from pydicom.uid import SecondaryCaptureImageStorage as SC

from neurovfm_core.dicom import ConvertParams, RejectedVolume, convert_series
from neurovfm_core.errors import Reason

ROWS, COLUMNS = 5, 7
AXIAL, CORONAL, SAGITTAL = (1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)
RNG = np.random.default_rng(0)


def slices(count=6, modality="MR", orientation=AXIAL, step_mm=4.0, origin=(-10.0, -20.0, 30.0), **elements):
    """Return datasets of one plain stack, with random pixels."""
    normal = np.cross(orientation[:3], orientation[3:])
    stack = []
    for k in range(count):
        position = np.array(origin) + k * step_mm * normal
        dataset = pydicom.Dataset()
        dataset.SOPClassUID = MRImageStorage if modality == "MR" else CTImageStorage
        dataset.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(position), str(elements)])
        dataset.Modality = modality
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M" if modality == "MR" else "AXIAL"]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.Rows, dataset.Columns = ROWS, COLUMNS
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 1
        dataset.PixelSpacing = [0.5, 0.75]
        dataset.SliceThickness = 3
        dataset.ImageOrientationPatient = list(orientation)
        dataset.ImagePositionPatient = [round(float(x), 5) for x in position]
        dataset.InstanceNumber = count - k
        dataset.pixels = RNG.integers(0, 2000, (ROWS, COLUMNS)).astype("<i2")
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        stack.append(dataset)
    return stack


def save(dataset, path, syntax=Explicit):
    pixels, elements = dataset.pixels, dataset
    dataset = pydicom.Dataset()
    dataset.update(elements)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax if syntax != RLELossless else Explicit
    if "PixelData" not in dataset:
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        dataset.PixelData = pixels.astype(f"{order}i2").tobytes()
        dataset["PixelData"].VR = "OW"
    if syntax == RLELossless:
        dataset.compress(RLELossless)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def run(tmp_path, datasets, params=None, syntax=Explicit, name="series"):
    folder = tmp_path / name
    folder.mkdir()
    for number, dataset in enumerate(datasets):
        save(dataset, folder / f"{number:03d}", syntax)
    return convert_series(folder, tmp_path / "nifti" / name, "ser_x", params or ConvertParams())


def voxels(tmp_path, volume):
    return np.asarray(nibabel.load(tmp_path / volume.outputs[0]).dataobj)


def reason_of(results):
    (refused,) = results
    assert isinstance(refused, RejectedVolume)
    return refused.reason


def test_slices_are_ordered_by_position_and_not_by_number_or_name(tmp_path):
    stack = slices()
    (volume,) = run(tmp_path, [stack[k] for k in (3, 0, 5, 1, 4, 2)])
    assert volume.shape == (COLUMNS, ROWS, 6) and volume.slice_axis == 2
    assert np.allclose(volume.spacing_mm, (0.75, 0.5, 4.0))
    assert np.array_equal(voxels(tmp_path, volume), np.stack([d.pixels.T for d in stack], axis=2))
    assert voxels(tmp_path, volume).dtype == np.int16


def test_spacing_comes_from_positions_whatever_the_tags_say(tmp_path):
    (volume,) = run(tmp_path, slices(step_mm=7.0, SpacingBetweenSlices=2, SliceThickness=5))
    assert volume.spacing_mm[2] == pytest.approx(7.0)


@pytest.mark.parametrize("syntax", [Explicit, ImplicitVRLittleEndian, ExplicitVRBigEndian, Deflated, RLELossless])
def test_every_encoding_gives_the_same_bytes(tmp_path, syntax):
    stack = slices()
    (plain,) = run(tmp_path, stack)
    (volume,) = run(tmp_path, stack, syntax=syntax, name="other")
    assert volume.sha256 == plain.sha256


def test_the_same_series_gives_the_same_bytes_again(tmp_path):
    stack = slices()
    assert run(tmp_path, stack, name="a")[0].sha256 == run(tmp_path, stack, name="b")[0].sha256
    raw = (tmp_path / "nifti" / "a" / "ser_x_v0.nii.gz").read_bytes()
    assert raw[4:8] == bytes(4)  # no time in the gzip header
    assert gzip.decompress(raw)[148 : 148 + 80] == bytes(80)  # nor a word in NIfTI's description


def test_a_series_of_echoes_b_values_and_parts_falls_into_volumes(tmp_path):
    datasets = [
        *slices(EchoNumbers=1, EchoTime=5),
        *slices(EchoNumbers=2, EchoTime=10),
        *slices(EchoNumbers=2, EchoTime=10, ImageType=["ORIGINAL", "PRIMARY", "P"]),
        *slices(EchoNumbers=2, EchoTime=10, DiffusionBValue=1000),
    ]
    volumes = run(tmp_path, datasets)
    assert [v.volume_id for v in volumes] == [f"ser_x_v{k}" for k in range(4)]
    for volume in volumes:
        matches = [
            part for part in range(4) if np.array_equal(voxels(tmp_path, volume)[:, :, 0], datasets[6 * part].pixels.T)
        ]
        assert len(matches) == 1
    assert [v.sequence_class for v in volumes].count("DWI") == 1


@pytest.mark.parametrize("keyword", ["TemporalPositionIdentifier", "AcquisitionNumber"])
def test_repeats_of_one_place_are_volumes_in_time_order(tmp_path, keyword):
    times = [slices(**{keyword: t}) for t in (1, 2, 3)]
    volumes = run(tmp_path, [times[t][k] for k in range(6) for t in (2, 0, 1)])
    assert len(volumes) == 3
    for volume, stack in zip(volumes, times, strict=True):
        assert np.array_equal(voxels(tmp_path, volume), np.stack([d.pixels.T for d in stack], axis=2))


def test_a_temporal_position_that_counts_slices_splits_nothing(tmp_path):
    stack = slices()
    for k, dataset in enumerate(stack):
        dataset.TemporalPositionIdentifier = k + 1
    assert len(run(tmp_path, stack)) == 1


def test_an_instance_that_came_twice_counts_once(tmp_path):
    stack = slices()
    (volume,) = run(tmp_path, [*stack, stack[2]])
    assert volume.num_slices == 6 and "duplicates_dropped" in volume.flags
    again = slices()[2]
    again.SOPInstanceUID, again.pixels = "1.2.3.4.5", stack[2].pixels
    (volume,) = run(tmp_path, [*stack, again], name="resent")
    assert volume.num_slices == 6 and "duplicates_dropped" in volume.flags


def test_two_different_slices_at_one_place_are_refused(tmp_path):
    other = slices()[2]
    other.SOPInstanceUID = "1.2.3.4.5"
    assert reason_of(run(tmp_path, [*slices(), other])) is Reason.DUPLICATE_SLICES


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: slices(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), Reason.LOCALIZER),
        (lambda: slices(SeriesDescription="AAHead_Scout"), Reason.LOCALIZER),
        (lambda: slices(3) + slices(3, orientation=CORONAL) + slices(3, orientation=SAGITTAL), Reason.LOCALIZER),
        (lambda: slices(ImageType=["DERIVED", "SECONDARY", "MPR"]), Reason.DERIVED),
        (lambda: slices(ImageType=["DERIVED", "PRIMARY", "PROJECTION IMAGE"]), Reason.DERIVED),
        (lambda: slices(ImageType=["DERIVED", "SECONDARY"], SeriesDescription="COR MIP"), Reason.DERIVED),
        (lambda: slices(9) + slices(2, orientation=CORONAL), Reason.MIXED_ORIENTATIONS),
        (lambda: slices(3), Reason.TOO_FEW_SLICES),
        (lambda: [*slices(8)[:3], *slices(8)[4:]], Reason.UNEVEN_SPACING),
        (lambda: slices(SOPClassUID=SC), Reason.SECONDARY_CAPTURE),
        (lambda: slices(Modality="PT"), Reason.NOT_CT_OR_MR),
        (lambda: slices(PhotometricInterpretation="PALETTE COLOR"), Reason.NOT_GREYSCALE),
        (lambda: slices(ImagePositionPatient=None), Reason.MISSING_GEOMETRY),
        (lambda: slices(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), Reason.MISSING_GEOMETRY),
        (lambda: slices(BitsAllocated=1), Reason.UNSUPPORTED_ENCODING),
        (lambda: slices(NumberOfFrames=3, PixelData=bytes(2 * 3 * ROWS * COLUMNS)), Reason.UNSUPPORTED_ENCODING),
        (lambda: slices(PixelData=bytes(2 * ROWS * COLUMNS)), Reason.NOT_A_VOLUME),
        (lambda: slices(PixelData=bytes(20)), Reason.TRUNCATED),
    ],
)
def test_what_is_no_volume_is_refused_with_its_reason(tmp_path, make, reason):
    assert reason_of(run(tmp_path, make())) is reason
    assert not list(tmp_path.rglob("*.nii.gz"))


@pytest.mark.parametrize("image_type", [["DERIVED", "SECONDARY", "OTHER"], ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]])
def test_a_derived_image_that_is_an_acquisition_stays(tmp_path, image_type):
    (volume,) = run(tmp_path, slices(ImageType=image_type))
    assert not isinstance(volume, RejectedVolume)


def test_a_folder_without_images_is_one_refusal(tmp_path):
    (tmp_path / "series").mkdir()
    refusals = convert_series(tmp_path / "series", tmp_path, "ser_x", ConvertParams())
    assert [(r.volume_id, r.reason) for r in refusals] == [("ser_x_v0", Reason.UNREADABLE)]
    (tmp_path / "series" / "garbage.dcm").write_bytes(b"garbage" * 99)
    (tmp_path / "series" / "empty.dcm").write_bytes(b"")
    assert reason_of(convert_series(tmp_path / "series", tmp_path, "ser_x", ConvertParams())) is Reason.UNREADABLE


def test_a_cut_last_slice_is_left_out_and_a_cut_middle_one_excludes(tmp_path):
    for k, kept in ((5, True), (3, False)):
        stack = slices()
        stack[k].PixelData = stack[k].pixels.tobytes()[:20]
        (result,) = run(tmp_path, stack, name=f"cut{k}")
        if kept:
            assert result.num_slices == 5 and "truncated_dropped" in result.flags
        else:
            assert result.reason is Reason.TRUNCATED


def test_rescale_is_applied_slice_by_slice(tmp_path):
    stack = slices()
    for k, dataset in enumerate(stack):
        dataset.RescaleSlope, dataset.RescaleIntercept = [1.5 + k, -7]
    (volume,) = run(tmp_path, stack)
    wanted = np.stack([d.pixels.T * (1.5 + k) - 7 for k, d in enumerate(stack)], axis=2)
    assert np.allclose(voxels(tmp_path, volume), wanted, rtol=1e-6)
    assert voxels(tmp_path, volume).dtype == np.float32


@pytest.mark.parametrize("stated", [-2000, 63536])
def test_padding_of_a_ct_becomes_air(tmp_path, stated):
    stack = slices(modality="CT", RescaleIntercept=-24, RescaleSlope=1)
    for dataset in stack:
        dataset.pixels[0, 0], dataset.pixels[0, 1] = -2000, 40
        dataset.add_new("PixelPaddingValue", "SS" if stated < 0 else "US", stated)
    (volume,) = run(tmp_path, stack)
    array = voxels(tmp_path, volume)
    assert array[0, 0, 0] == -1000 and array[1, 0, 0] == 16
    assert volume.sequence_class == "CT" and "padding_replaced" in volume.flags


def test_a_padding_value_inside_tissue_is_not_believed(tmp_path):
    stack = slices(modality="CT", RescaleIntercept=0, RescaleSlope=1)
    for dataset in stack:
        dataset.pixels[0, 0] = 0
        dataset.add_new("PixelPaddingValue", "SS", 0)
    (volume,) = run(tmp_path, stack)
    assert voxels(tmp_path, volume)[0, 0, 0] == 0


def test_bits_beside_the_pixel_are_ignored(tmp_path):
    stack = slices(BitsStored=12, HighBit=11, PixelRepresentation=0)
    wanted = np.stack([d.pixels.T.copy() for d in stack], axis=2)
    for dataset in stack:
        dataset.pixels |= 0x4000  # an overlay of old
    (volume,) = run(tmp_path, stack)
    assert np.array_equal(voxels(tmp_path, volume), wanted)


def test_a_tilted_stack_comes_out_straight(tmp_path):
    """A plane through sheared slices, known everywhere, must be the same plane afterwards."""
    orientation, shear = AXIAL, 1.3
    stack = slices(8, modality="CT", orientation=orientation, step_mm=4.0)
    for k, dataset in enumerate(stack):
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y + k * shear, z]
        rows = np.arange(ROWS) * 0.5 + y + k * shear
        dataset.pixels = np.repeat(np.rint(rows * 20)[:, None], COLUMNS, axis=1).astype("<i2")
    (volume,) = run(tmp_path, stack)
    assert "tilt_corrected" in volume.flags
    image = nibabel.load(tmp_path / volume.outputs[0])
    array, affine = np.asarray(image.dataobj), image.affine
    assert abs(affine[:3, 1] @ affine[:3, 2]) < 1e-6
    j = np.arange(array.shape[1])
    y_lps = -(affine[1, 1] * j + affine[1, 3])
    inside = array[3] != -1000
    for k in range(8):
        covered = np.flatnonzero(inside[:, k])[1:-1]
        assert len(covered) >= ROWS - 3
        assert np.abs(array[3, covered, k] - y_lps[covered] * 20).max() <= 1
    assert reason_of(run(tmp_path, stack, ConvertParams(tilt="exclude"), name="strict")) is Reason.GANTRY_TILT


def test_the_sidecar_states_physics_and_no_identifier(tmp_path):
    stack = slices(
        EchoTime=80,
        RepetitionTime=5000,
        MagneticFieldStrength=15000,
        SeriesDescription="JOHN DOE",
        PatientName="DOE^JOHN",
        PatientID="MRN1",
        ContrastBolusAgent="Gadovist lot 7",
    )
    (volume,) = run(tmp_path, stack)
    text = (tmp_path / volume.outputs[1]).read_text()
    facts = json.loads(text)
    assert (facts["EchoTime"], facts["RepetitionTime"], facts["MagneticFieldStrength"]) == (0.08, 5.0, 1.5)
    assert (facts["SequenceClass"], facts["SliceAxis"], facts["ContrastBolusAgent"]) == ("T2", 2, "YES")
    assert not any(secret in text.upper() for secret in ("DOE", "MRN1", "GADOVIST"))


@pytest.mark.parametrize(
    ("elements", "label"),
    [
        ({"SeriesDescription": "Ax T2 FLAIR"}, "FLAIR"),
        ({"SeriesDescription": "t1_mprage_sag"}, "T1"),
        ({"SeriesDescription": "AX T1 FLAIR"}, "T1"),
        ({"SeriesDescription": "t2_tse_tra"}, "T2"),
        ({"SeriesDescription": "Ax T2* GRE"}, "T2*"),
        ({"SeriesDescription": "SWI_Images"}, "SWI"),
        ({"SeriesDescription": "ep2d_diff", "DiffusionBValue": 1000.0}, "DWI"),
        ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}, "ADC"),
        ({"SeriesDescription": "TOF_3D"}, "MRA"),
        ({"ScanningSequence": "SE", "EchoTime": 9, "RepetitionTime": 500}, "T1"),
        ({"ScanningSequence": "SE", "EchoTime": 100, "RepetitionTime": 4000}, "T2"),
        ({"ScanningSequence": ["SE", "IR"], "EchoTime": 90, "RepetitionTime": 9000, "InversionTime": 2500}, "FLAIR"),
        ({"ScanningSequence": "GR", "EchoTime": 25, "RepetitionTime": 700}, "T2*"),
        ({}, "unknown"),
    ],
)
def test_sequence_classes(tmp_path, elements, label):
    (volume,) = run(tmp_path, slices(**elements))
    assert volume.sequence_class == label
