"""De-identification of radiology reports.

Known identifiers are replaced wherever they stand; patterns catch what the
warehouse does not know (doctors, phones, dates, numbers). Findings,
measurements and laterality are left alone, since labels are read from them.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neurovfm_core.deid.pseudonyms import Pseudonymizer
from neurovfm_core.errors import Excluded, Reason
from neurovfm_core.files import written_whole
from neurovfm_core.pacs import ReportRecord

ADDENDUM = "ADDENDUM:"
_COMMON_WORDS = """
    an as at be by do go he in is it no of on or so to up us we and are for has her his nor not our see
    she the was acute age angle back ball bell berry black blood body bone bowel brain bright brown burr
    canal cave cord cross day dense disc early east field fine fluid fossa foot forth fox free frank
    glass gold grant gray green grey hall hand head heart high hill hook horn hunter joint king lake
    large lateral left little long low major marks may mild mole moon neck new noble north page park
    post power pope price pride read reed rice rich right ring rose sharp short silver small snow south
    stable stone strong summer swan thick tip vein wall ward waters west white wise wood young
"""
COMMON_WORDS = frozenset(_COMMON_WORDS.split())
"""Family names that are also words of a report: replaced only where a name must stand."""

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_YEAR = r"(?:19|20)\d\d"
_WORD = r"[A-Z][A-Za-z'’\-]+"
_INITIAL = r"[A-Z]\."
_PARTICLES = r"(?:(?:van|von|de|der|den|la|le|di|da|del|bin|al)[ \t]+)*"
_NAME = rf"(?:{_WORD}|{_INITIAL})(?:[ \t]+{_PARTICLES}(?:{_WORD}|{_INITIAL})){{0,3}}"
# Without MR. and MS.: in capitals they are an examination and a disease.
_TITLES = r"(?:(?:Dr|Drs|Prof|Mr|Mrs|Ms)\.?|Doctor|Professor|Miss|DR\.|MRS\.|PROF\.)(?![A-Za-z])"
_DEGREES = r"(?:,[ \t]*(?:M\.?D\.?|D\.?O\.?|Ph\.?D\.?|MBBS|FRCR|R\.?N\.?|PA-?C)|[ \t]+M\.?D\.?)"
_NUMBER_LABELS = (
    r"(?:mrn|medical record(?: number| no\.?)?|patient id|pt id|accession(?: number| no\.?)?|acc|ssn|account)"
)
_PLACES = r"(?i:hospitals?|medical cent(?:er|re)|clinic|infirmary|health system|imaging cent(?:er|re))"
_STREETS = r"(?:Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Boulevard|Blvd|Court|Way)"
_SIGNED = r"(?:signed|dictated|transcribed|read|reported|interpreted|reviewed|approved|verified) by"
_TOLD = r"(?:discussed with|communicated to|notified|conveyed to|called to)"
_RELATIVE = r"(?:wife|husband|spouse|partner|daughter|son|mother|father|sister|brother|guardian|caregiver|neighbou?r)"
_NAME_LABELS = (
    r"patient(?: name)?|name|contact(?: person)?|next of kin|guardian|spouse|caregiver|"
    r"(?:referring|ordering)(?: physician| provider)?|requested by|"
    rf"radiologist|attending|resident|technologist|{_SIGNED}|{_TOLD}"
)

PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(expression, flags), mark)
    for expression, flags, mark in (
        (r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+", 0, "[EMAIL]"),
        (r"\bhttps?://\S+|\bwww\.\S+", re.I, "[URL]"),
        (rf"\b{_NUMBER_LABELS}\s*[:#=]?\s*#?\s*(?=[\w-]*\d)[A-Za-z0-9][\w-]{{2,}}", re.I, "[ID]"),
        (r"\b(?:date of birth|dob|born)\s*[:#]?\s*[\d/.\- ]{6,12}", re.I, "[DATE]"),
        (rf"\b{_YEAR}[-/.]\d{{1,2}}[-/.]\d{{1,2}}\b", 0, "[DATE]"),
        (r"\b\d{1,2}[-/.]\d{1,2}[-/.](?:19|20)?\d\d\b", 0, "[DATE]"),
        (rf"\b\d{{1,2}}(?:st|nd|rd|th)?[ \-]{_MONTH}[ \-,]+{_YEAR}\b", re.I, "[DATE]"),
        (rf"\b{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?(?:,? {_YEAR})?\b(?! ?[mc]m|\.\d)", re.I, "[DATE]"),
        (rf"\b\d{{1,2}}(?:st|nd|rd|th)? {_MONTH}(?= |,|\.|;|$)", re.I, "[DATE]"),
        (rf"\b{_MONTH}[ ,]+{_YEAR}\b", re.I, "[DATE]"),
        (rf"\b{_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\b", 0, "[DATE]"),
        (r"(?<=\bon )\d{1,2}/\d{1,2}\b(?!/)|(?<=\bdated )\d{1,2}/\d{1,2}\b(?!/)", re.I, "[DATE]"),
        (r"\b[0-2]?\d:[0-5]\d(?::[0-5]\d)?(?:\s*(?:[ap]\.?m\.?|hrs?|hours)\b)?", re.I, "[TIME]"),
        (r"(?<![\w.])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\) ?|\d{2,4}[ .-])\d{3,4}[ .-]\d{4}\b", 0, "[PHONE]"),
        (r"\b(?:ext|extension|pager|phone|tel|fax)\.?\s*[:#]?\s*[\d .\-()+]{3,}\d", re.I, "[PHONE]"),
        (rf"\b\d{{1,5}} (?:[A-Z][a-z]+ ){{1,3}}{_STREETS}\b", 0, "[ADDRESS]"),
        (rf"\b(?:{_WORD}|{_INITIAL})(?:[ \t]+(?:{_WORD}|of|the)){{0,3}}[ \t]+{_PLACES}\b", 0, "[PLACE]"),
        (r"\b[A-Z]{1,4}-?\d{5,}(?:-\d+)*\b|\b\d{6,}\b|\b\d{3}-\d{2}-\d{4}\b", 0, "[ID]"),
        (rf"\b{_TITLES}[ \t]*{_NAME}", 0, "[NAME]"),
        (rf"\b{_NAME}{_DEGREES}(?![A-Za-z])", 0, "[NAME]"),
        (rf"((?i:\b(?:{_NAME_LABELS}))[ \t]*:[ \t]*){_NAME}(?:,[ \t]*{_NAME})?", 0, r"\1[NAME]"),
        (rf"((?i:\b(?:{_SIGNED}|{_TOLD}|{_RELATIVE},?))[ \t]+\(?){_NAME}", 0, r"\1[NAME]"),
    )
)  # fmt: skip
_AGE = re.compile(r"\b(\d{2,3})(?=[ -]?(?:years?[ -]old|year[ -]old|y/?o\b|yo\b|-year-old))", re.I)


@dataclass(frozen=True, slots=True)
class Identifiers:
    """What the archive knows of whom a report is about."""

    names: tuple[str, ...] = field(default=(), repr=False)  # any order of parts: "DOE^JANE", "Doe, Jane"
    numbers: tuple[str, ...] = field(default=(), repr=False)  # patient number, accession number, UIDs


@dataclass(frozen=True, slots=True)
class ExportedReport:
    """Pseudonymous facts of one exported report."""

    item_id: str
    study_id: str
    patient_id: str
    modality: str
    time_bucket: str
    outputs: tuple[str, ...]
    bytes: int
    sha256: str


def scrub_report(text: str, known: Identifiers) -> str:
    """Replace identifiers in a report by their kind in brackets.

    Parameters
    ----------
    text
        As dictated.
    known
        Replaced wherever they stand, whatever the case.

    Returns
    -------
    str
        The same lines, with ``[NAME]``, ``[ID]``, ``[DATE]``, ``[TIME]``, ``[PHONE]``,
        ``[EMAIL]``, ``[URL]``, ``[ADDRESS]``, ``[PLACE]``, and ages of 90 and more as ``90+``.

    Examples
    --------
    >>> scrub_report("Seen by Dr. Anna Miller on 03/04/2021: no bleed.", Identifiers())
    'Seen by [NAME] on [DATE]: no bleed.'
    """
    for number in sorted((n.strip() for n in known.numbers if len(n.strip()) >= 3), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(number)}(?!\w)", "[ID]", text, flags=re.IGNORECASE)
    for name in known.names:
        text = _without_name(text, name)
    for expression, mark in PATTERNS:
        text = expression.sub(mark, text)
    text = _AGE.sub(lambda match: "90+" if int(match[1]) >= 90 else match[1], text)
    return re.sub(r"\[NAME\](?:[ \t,]+\[NAME\])+", "[NAME]", text)


def export_report(records: Sequence[ReportRecord], pseudonymizer: Pseudonymizer, reports_root: Path) -> ExportedReport:
    """Write the report of one study, its addenda at the end, as ``<root>/<study>.txt``.

    Parameters
    ----------
    records
        All rows of one study, in the warehouse's order.

    Raises
    ------
    Excluded
        If no row has text, or the warehouse does not know the study.
    """
    if not records or len({record.study_uid for record in records}) != 1:
        raise ValueError("the records of exactly one study are needed")
    first = records[0]
    study_id = pseudonymizer.study(first.study_uid)
    item_id = study_id.replace("stu_", "rep_")
    if not first.modality:
        raise Excluded(Reason.UNMATCHED_REPORT, "the warehouse has no study for it", where=item_id)
    known = Identifiers(
        names=tuple({record.patient_name for record in records}),
        numbers=tuple({v for r in records for v in (r.patient_id, r.accession, r.study_uid)}),
    )
    parts = [
        (f"{ADDENDUM}\n" if record.status == "addendum" else "") + scrub_report(record.text, known).strip()
        for record in records
        if record.text.strip()
    ]
    if not parts:
        raise Excluded(Reason.EMPTY_REPORT, "no text", where=item_id)
    content = ("\n\n".join(parts) + "\n").encode()
    path = reports_root / f"{study_id}.txt"
    with written_whole(path) as partial:
        partial.write_bytes(content)
    return ExportedReport(
        item_id=item_id,
        study_id=study_id,
        patient_id=pseudonymizer.patient(first.patient_id or f"study {first.study_uid}"),
        modality=first.modality,
        time_bucket=first.study_date[:4],
        outputs=(f"{reports_root.name}/{path.name}",),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _without_name(text: str, name: str) -> str:
    """Replace a person's name: the parts together in any order, then each part alone."""
    parts = [part for part in re.split(r"[\s,^.=]+", name) if len(part) > 1]
    if not parts:
        return text
    any_part = "|".join(re.escape(part) for part in sorted(parts, key=len, reverse=True))
    together = rf"\b(?:{any_part})\b(?:[\s,]+(?:[A-Z]\.?[\s,]+)?(?:{any_part})\b)+"
    text = re.sub(together, "[NAME]", text, flags=re.IGNORECASE)
    for part in parts:
        if part.lower() in COMMON_WORDS:
            continue
        # A short part ("Li", "An") would hit ordinary words unless it is written as a name.
        exact = {part.capitalize(), part.upper()} if len(part) <= 3 else set()
        pattern = "|".join(map(re.escape, sorted(exact))) if exact else re.escape(part)
        text = re.sub(rf"\b(?:{pattern})(?:['’]s)?\b", "[NAME]", text, flags=0 if exact else re.IGNORECASE)
    return text
