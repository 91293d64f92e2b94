"""Who comes to the synthetic hospital, when, to which scanner, and with what.

Nobody here exists. Names are drawn from lists, numbers from a formula, and UIDs
live under 2.999, the arc that is reserved for examples.
"""

import datetime as dt
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from neurovfm_core.errors import UsageError
from neurovfm_core.hospital.findings import Finding, sample_findings
from neurovfm_core.params import Params
from neurovfm_core.randomness import rng_for
from neurovfm_core.vocabulary import Modality


class HospitalParams(Params):
    """What the synthetic hospital holds."""

    num_studies: Annotated[int, Field(ge=1)] = 60
    """Head studies. A larger number adds studies and leaves the others as they are."""
    seed: int = 0
    """Another seed is another hospital."""
    first_date: dt.date = dt.date(2019, 1, 1)
    """Earliest study date."""
    last_date: dt.date = dt.date(2024, 12, 31)
    """Latest study date; its year serves as the prospective test year."""
    mr_share: Annotated[float, Field(ge=0, le=1)] = 0.6
    """Share of first visits that are MR; the others are CT."""
    junk: bool = True
    """Whether to add what real archives hold besides good series: scouts, SR, broken files."""
    scale: Annotated[float, Field(gt=0, le=4)] = 1.0
    """In-plane matrix size relative to the demonstration's; about 2 is clinical size."""

    @model_validator(mode="after")
    def _dates_in_order(self) -> "HospitalParams":
        if self.first_date >= self.last_date:
            raise ValueError("first_date must come before last_date")
        return self


@dataclass(frozen=True, slots=True)
class Patient:
    """One person as the registration desk knows them. Every text field identifies."""

    index: int  # of their first study
    family: str
    given: str
    sex: str  # DICOM code "F" or "M"
    birth_date: dt.date
    mrn: str

    def age_on(self, day: dt.date) -> int:
        """Return the completed years on a day."""
        had_birthday = (day.month, day.day) >= (self.birth_date.month, self.birth_date.day)
        return day.year - self.birth_date.year - (not had_birthday)


@dataclass(frozen=True, slots=True)
class Scanner:
    """One machine of the fleet. `vendor` selects the writing habits in `vendors`."""

    vendor: str
    model: str
    modality: Modality
    field_strength_t: float  # 0 for CT
    station: str
    serial: str
    site: int  # index into SITES


@dataclass(frozen=True, slots=True)
class Visit:
    """One study: who, when, where, and what is to be seen.

    `findings` are in the head; `changes` says of those that the prior study showed
    already "unchanged" or "decreased"; `resolved` are the prior's findings that are gone.
    """

    seed: int  # of the hospital
    index: int
    patient: Patient
    modality: Modality
    study_date: dt.date
    study_time: str  # HHMMSS
    scanner: Scanner
    findings: tuple[Finding, ...]
    changes: Mapping[str, str] = field(default_factory=dict)
    resolved: tuple[Finding, ...] = ()
    prior_date: dt.date | None = None
    prior_modality: Modality | None = None

    @property
    def age_years(self) -> int:
        return self.patient.age_on(self.study_date)

    @property
    def accession(self) -> str:
        return f"A{self.study_date:%y}{_scrambled(self.seed, self.index, 7)}"

    @property
    def study_uid(self) -> str:
        number = _scrambled(self.seed, self.index, 9)
        return f"2.999.71.{self.seed}.{number}.{self.study_date:%Y%m%d}.{self.index + 1}"


SITES = (
    (
        "Harrowgate General Hospital",
        "2200 Quarry Hill Road, Harrowgate, OH 44999",
        "Dept of Neuroradiology HGH",
    ),
    ("Saint Odile Medical Center", "17 Tannery Lane, Port Ellery, ME 04999", "Imaging Center SOMC"),
)

FLEET = (
    Scanner("SIEMENS", "Skyra", Modality.MR, 3.0, "HGHMRSKY01", "SN-445171", 0),
    Scanner("SIEMENS", "Aera", Modality.MR, 1.5, "SOMMRAER02", "SN-341882", 1),
    Scanner("GE MEDICAL SYSTEMS", "SIGNA Artist", Modality.MR, 1.5, "HGHMRSIG03", "000000734MR3A1", 0),
    Scanner("Philips Medical Systems", "Ingenia", Modality.MR, 3.0, "SOMMRING04", "PH-42207-71", 1),
    Scanner("UIH", "uMR 780", Modality.MR, 3.0, "HGHMRUMR05", "UIH-200871", 0),
    Scanner("SIEMENS", "SOMATOM Force", Modality.CT, 0.0, "HGHCTFOR06", "SN-075533", 0),
    Scanner("GE MEDICAL SYSTEMS", "Revolution CT", Modality.CT, 0.0, "SOMCTREV07", "REVX2100088", 1),
    Scanner("Philips Medical Systems", "iCT 256", Modality.CT, 0.0, "HGHCTICT08", "PH-10077-30", 0),
    Scanner("TOSHIBA", "Aquilion ONE", Modality.CT, 0.0, "SOMCTAQU09", "TSX-4A1432", 1),
)


@cache
def _people() -> dict[str, list[str]]:
    with Path(__file__).with_name("people.toml").open("rb") as file:
        return tomllib.load(file)


_FOLLOW_UP_SHARE = 0.3
_PASSING = (
    "hematoma",
    "hemorrhage",
    "contusion",
    "edema",
    "pneumocephalus",
    "sinusitis",
    "mastoid",
    "acute_ischemic",
)


def visits(params: HospitalParams) -> Iterator[Visit]:
    """Yield the head studies of the hospital in order of their index.

    Study k depends on the seed and on studies before it alone, so a hospital
    that grows keeps what it has. About a third of the studies are follow-ups.
    """
    latest: dict[int, Visit] = {}
    owners: list[int] = []
    for index in range(params.num_studies):
        rng = rng_for(params.seed, "visit", index)
        prior = latest[owners[int(rng.integers(index))]] if index else None
        gap_days = int(rng.integers(2, 700))
        follows = rng.random() < _FOLLOW_UP_SHARE
        if prior and follows and prior.study_date + dt.timedelta(gap_days) <= params.last_date:
            visit = _follow_up(rng, index, prior, prior.study_date + dt.timedelta(gap_days))
        else:
            visit = first_visit(rng, index, params)
        latest[visit.patient.index] = visit
        owners.append(visit.patient.index)
        yield visit


def first_visit(
    rng: np.random.Generator,
    index: int,
    params: HospitalParams,
    modality: Modality | None = None,
    *,
    healthy: bool = False,
) -> Visit:
    """Draw a new patient and their first study; of a given modality, or without findings, if asked."""
    day = params.first_date + dt.timedelta(int(rng.integers((params.last_date - params.first_date).days + 1)))
    patient = _patient(rng, params.seed, index, day)
    drawn = Modality.MR if rng.random() < params.mr_share else Modality.CT
    modality = modality or drawn
    findings = () if healthy else sample_findings(rng, modality.value, patient.age_on(day))
    return Visit(params.seed, index, patient, modality, day, _clock(rng), _scanner(rng, modality), findings)


def _follow_up(rng: np.random.Generator, index: int, prior: Visit, day: dt.date) -> Visit:
    """The same person later. In the same modality most findings are still there, some are gone."""
    other = Modality.CT if prior.modality is Modality.MR else Modality.MR
    modality = prior.modality if rng.random() < 0.75 else other
    if modality is prior.modality:
        findings, changes, resolved = _course(rng, prior.findings, (day - prior.study_date).days)
    else:
        findings = sample_findings(rng, modality.value, prior.patient.age_on(day))
        changes, resolved = {}, ()
    return Visit(
        prior.seed, index, prior.patient, modality, day, _clock(rng), _scanner(rng, modality), findings,
        changes, resolved, prior.study_date, prior.modality,
    )  # fmt: skip


def _course(
    rng: np.random.Generator, before: tuple[Finding, ...], days: int
) -> tuple[tuple[Finding, ...], dict[str, str], tuple[Finding, ...]]:
    """Return what is left of earlier findings, how each of those changed, and what is gone.

    Blood, oedema and fluid go within two months, or shrink before that; the rest stays.
    """
    left: list[Finding] = []
    gone: list[Finding] = []
    changes: dict[str, str] = {}
    for finding in before:
        passing = any(word in finding.label for word in _PASSING)
        if passing and (days > 60 or rng.random() < 0.3):
            gone.append(finding)
        elif passing and finding.size_mm > 12 and rng.random() < 0.6:
            left.append(_shrunk(finding, float(rng.uniform(0.6, 0.8))))
            changes[finding.label] = "decreased"
        else:
            left.append(finding)
            changes[finding.label] = "unchanged"
    return tuple(left), changes, tuple(gone)


def _shrunk(finding: Finding, factor: float) -> Finding:
    """The same finding, smaller; what it displaced returns, and with it the labels of displacement."""
    parameters = dict(finding.parameters)
    if "shift_mm" in parameters:
        parameters["shift_mm"] = 0.0
    implied = tuple(label for label in finding.implied if not label.endswith(("midline_shift", "mass_effect")))
    return replace(finding, size_mm=round(finding.size_mm * factor, 1), parameters=parameters, implied=implied)


def _patient(rng: np.random.Generator, seed: int, index: int, day: dt.date) -> Patient:
    sex = "F" if rng.random() < 0.52 else "M"
    age_years = float(np.clip(rng.normal(57, 19), 18, 96))
    born = day - dt.timedelta(int(age_years * 365.25) + int(rng.integers(1, 365)))
    people = _people()
    family, given = str(rng.choice(people["family"])), str(rng.choice(people[f"given_{sex}"]))
    return Patient(index, family, given, sex, born, "4" + _scrambled(seed, index, 8))


def _scanner(rng: np.random.Generator, modality: Modality) -> Scanner:
    fleet = [scanner for scanner in FLEET if scanner.modality is modality]
    return fleet[int(rng.integers(len(fleet)))]


def _clock(rng: np.random.Generator) -> str:
    return f"{rng.integers(7, 21):02d}{rng.integers(60):02d}{rng.integers(60):02d}"


def _scrambled(seed: int, index: int, num_digits: int) -> str:
    """Return a number of exactly `num_digits` digits: one to one with the index, yet not sequential."""
    room = 9 * 10 ** (num_digits - 1)
    return str(10 ** (num_digits - 1) + (index * 48_271 + seed * 104_729 + 3_571_113) % room)


class Identifiers(Mapping[str, str]):
    """Everything about a visit that must not leave the hospital, by kind.

    Writers take their text from here, and a kind counts as planted once it has
    been read: the list that a privacy scan searches for cannot drift from the files.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)
        self._read: set[str] = set()

    def __getitem__(self, kind: str) -> str:
        self._read.add(kind)
        return self._values[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def peek(self, kind: str) -> str:
        """Return a text for a place where no text search would find it (a picture, a decision)."""
        return self._values[kind]

    @property
    def planted(self) -> dict[str, str]:
        """The kinds that were written somewhere, with their text."""
        return {kind: self._values[kind] for kind in sorted(self._read)}


def identifiers(visit: Visit) -> Identifiers:
    """Return every identifier of a visit. The patient's own are the same at each of their visits."""
    patient, day, people = visit.patient, visit.study_date, _people()
    who = rng_for(visit.seed, "person", patient.index)
    where = rng_for(visit.seed, "order", visit.index)
    doctors = [str(name) for name in where.permutation(people["staff"])[:7]]
    relative = f"{who.choice(people['given_F'])} {who.choice(people['family'])}"
    plain = _ascii(f"{patient.family} {patient.given}").upper()
    stem = f"{plain.replace(' ', '_')}_{patient.mrn}"
    institution, address, department = SITES[visit.scanner.site]
    own = {
        "patient_name": f"{patient.family}^{patient.given}",
        "patient_name_spoken": f"{patient.given} {patient.family}",
        "patient_family_name": patient.family,
        "patient_name_capitals": f"{_ascii(patient.family)}, {_ascii(patient.given)}".upper(),
        "patient_birth_name": f"{who.choice(people['family'])}^{patient.given}",
        "patient_mother_birth_name": f"{who.choice(people['family'])}^{who.choice(people['given_F'])}",
        "patient_id": patient.mrn,
        "issuer_of_patient_id": institution.split()[0].upper() + "-MPI",
        "other_patient_id": f"OLD{_digits(who, 7)}",
        "patient_birth_date": f"{patient.birth_date:%Y%m%d}",
        "patient_birth_date_iso": f"{patient.birth_date:%Y-%m-%d}",
        "patient_birth_date_us": f"{patient.birth_date:%m/%d/%Y}",
        "patient_address": _address(who),
        "patient_phone": _phone(who),
        "patient_email": _ascii(f"{patient.given}.{patient.family}").lower() + "@mailhaven.example",
        "patient_employer": str(who.choice(people["employers"])),
        "relative_name": relative,
        "relative_phone": _phone(who),
        "national_id": f"9{_digits(who, 2)}-{_digits(who, 2)}-{_digits(who, 4)}",
        "health_plan_number": f"HPN-{_digits(who, 8)}",
        "folder_name": stem,
        "csa_patient_name": f"{plain.replace(' ', '/')}/{patient.sex}",
    }
    order = {
        "accession_number": visit.accession,
        "study_instance_uid": visit.study_uid,
        "study_id": f"ST{_digits(where, 6)}",
        "study_date": f"{day:%Y%m%d}",
        "study_date_iso": f"{day:%Y-%m-%d}",
        "study_date_us": f"{day:%m/%d/%Y}",
        "study_date_long": f"{day:%B} {day.day}, {day.year}",
        "study_time": visit.study_time + f".{_digits(where, 6)}",
        "admission_id": f"ADM{_digits(where, 8)}",
        "bed": f"WARD {where.integers(2, 9)}-BED {_digits(where, 3)}",
        "referring_physician": f"{doctors[0]}^Alaric^^Dr",
        "referring_physician_spoken": f"Dr. {doctors[0]}",
        "referring_phone": _phone(where),
        "referring_address": f"{where.integers(100, 9999)} Physicians Plaza, Suite {_digits(where, 3)}",
        "performing_physician": f"{doctors[1]}^Rowena",
        "operator": f"{doctors[2]}^Tech",
        "requesting_physician": f"{doctors[3]}^Cosima",
        "physician_of_record": f"{doctors[4]}^Bertrand",
        "reading_physician": f"{doctors[5]}^Evander",
        "reading_physician_spoken": f"{doctors[5]}, MD",
        "resident_spoken": f"{doctors[6]}, DO",
        "ward_phone": _phone(where),
        "institution_name": institution,
        "institution_address": address,
        "department_name": department,
        "station_name": visit.scanner.station,
        "device_serial": visit.scanner.serial,
        "source_ae_title": f"AE_{visit.scanner.station}",
        "scanner_address": f"10.{where.integers(11, 99)}.{where.integers(100, 250)}.{_digits(where, 2)}",
        "requested_procedure_id": f"RP{_digits(where, 7)}",
        "scheduled_step_id": f"SPS{_digits(where, 7)}",
        "performed_step_id": f"PPS{_digits(where, 7)}",
        "filler_order_number": f"FON{_digits(where, 8)}",
        "private_exam_number": f"EX{_digits(where, 6)}",
        "private_archive_path": f"D:\\IMAGES\\{stem}\\{_digits(where, 6)}",
        "preamble_note": f"EXPORTED FOR {plain}",
        "meta_private_note": f"ROUTE {stem}",
        "protocol_owner": f"HEAD {doctors[1].upper()[:10]} SPECIAL",
        "trial_subject": f"NEUTRAL-{_digits(where, 5)}",
    }  # fmt: skip
    if visit.prior_date:
        order["prior_study_date_us"] = f"{visit.prior_date:%m/%d/%Y}"
    return Identifiers(own | order)


def _digits(rng: np.random.Generator, count: int) -> str:
    return "".join(str(digit) for digit in rng.integers(0, 10, count))


def _address(rng: np.random.Generator) -> str:
    people = _people()
    return f"{rng.integers(100, 9999)} {rng.choice(people['streets'])} Street, {rng.choice(people['towns'])}"


def _phone(rng: np.random.Generator) -> str:
    return f"({rng.integers(200, 990)}) 555-{_digits(rng, 4)}"


def _ascii(text: str) -> str:
    return text.translate(str.maketrans("äåéöøüÅØ", "aaeoouAO"))


def require_same_hospital(recorded: Mapping[str, object], params: HospitalParams) -> None:
    """Raise `UsageError` if a folder was built with settings other than these (its size apart)."""
    wanted = described(params)
    if recorded != wanted:
        changed = sorted(key for key in wanted if recorded.get(key) != wanted[key])
        raise UsageError(
            f"this folder holds a hospital built with other settings: {', '.join(changed)}",
            hint="use the settings it was built with, or an empty folder; num_studies may always grow",
        )


def described(params: HospitalParams) -> dict[str, object]:
    """Return the settings that fix the content of each study, as JSON values."""
    return params.model_dump(mode="json", exclude={"num_studies"})
