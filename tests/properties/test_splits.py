"""Splits: a patient is in one, for ever, whoever else is there."""

from hypothesis import given
from hypothesis import strategies as st

from neurovfm_core.shards import PatientStudy, SplitParams, assign_splits
from neurovfm_core.vocabulary import Split

studies = st.lists(
    st.builds(
        PatientStudy, st.integers(0, 30).map(lambda n: f"pat_{n}"), st.sampled_from(["", "2019", "2022", "2024"])
    ),
    max_size=60,
)
params = st.builds(
    SplitParams,
    test_from=st.sampled_from(["", "2022", "2024"]),
    test_share=st.sampled_from([0.0, 0.3]),
    val_share=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 3),
)


@given(studies, studies, params, params)
def test_a_split_once_given_is_kept_whatever_comes_later(first, later, before, after) -> None:
    frozen = assign_splits(first, {}, before)
    grown = assign_splits(first + later, frozen, after)
    assert {patient: grown[patient] for patient in frozen} == frozen


@given(studies, params)
def test_the_order_of_studies_and_other_patients_play_no_part(found, settings) -> None:
    whole = assign_splits(found, {}, settings)
    assert assign_splits(list(reversed(found)), {}, settings) == whole
    for patient in whole:
        alone = assign_splits([study for study in found if study.patient_id == patient], {}, settings)
        assert alone == {patient: whole[patient]}


@given(studies, params)
def test_a_patient_of_the_held_out_time_is_in_test(found, settings) -> None:
    whole = assign_splits(found, {}, settings)
    late = {study.patient_id for study in found if settings.test_from and study.time_bucket >= settings.test_from}
    assert all(whole[patient] is Split.TEST for patient in late)


def test_shares_are_kept_on_average() -> None:
    many = [PatientStudy(f"pat_{n}", "") for n in range(4000)]
    splits = list(assign_splits(many, {}, SplitParams(test_share=0.2, val_share=0.1)).values())
    assert abs(splits.count(Split.TEST) / 4000 - 0.2) < 0.02
    assert abs(splits.count(Split.VAL) / 4000 - 0.08) < 0.02
