"""Radiology reports that agree with what was planted, in the habits of several radiologists.

The wording is data (`phrases.toml`); this module decides what is said, what is hedged,
denied, put off to an addendum or left out, and keeps the record of it.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from neurovfm_core.hospital.findings import Finding, truth_labels
from neurovfm_core.hospital.patients import Identifiers, Visit
from neurovfm_core.randomness import rng_for
from neurovfm_core.vocabulary import LabelState, Modality


@dataclass(frozen=True, slots=True)
class WrittenReport:
    """One study's report and the state it gives each label it speaks of."""

    text: str  # "" when the dictation was lost
    addendum: str  # "" when there is none
    states: Mapping[str, LabelState]


_GENERAL = {"intracranial_hemorrhage", "brain_tumor", "glioma"}
"""Labels that a radiologist leaves to be inferred from the more exact one that implies them."""

_MASS_WORDS = ("tumor", "glioma", "metastasis", "meningioma", "cavity", "cavernoma", "cyst", "abscess")
_CONTRADICTED_BY = {
    "intracranial_hemorrhage": ("hemorrhage", "hematoma", "contusion"),
    "subdural_hematoma": ("subdural",),
    "brain_tumor": _MASS_WORDS,
    "intra_axial_brain_tumor": _MASS_WORDS,
    "extra_axial_brain_tumor": _MASS_WORDS,
    "brain_mass_effect": ("mass_effect", "midline_shift", "edema", "herniation"),
    "brain_herniation": ("herniation", "midline_shift"),
    "obstructive_hydrocephalus": ("hydrocephalus", "ventriculomegaly"),
    "nondisplaced_skull_fracture": ("fracture", "craniotomy", "burr_hole"),
    "skull_base_fracture": ("fracture",),
}
"""Words in a present label that forbid denying this one; by default its own name."""

_MINOR = {"sinusitis", "mastoid_effusion", "basal_ganglia_calcification", "arachnoid_cyst", "lacunar_stroke"}
_MINOR |= {"small_vessel_ischemic_disease", "cerebral_atrophy", "scalp_hemorrhage_hematoma"}
"""Findings that may be forgotten at first and added later."""

_HEADINGS = (
    "BRAIN PARENCHYMA", "WHITE MATTER", "HEMORRHAGE", "MASS EFFECT", "MIDLINE SHIFT", "EXTRA-AXIAL SPACES",
    "VENTRICLES AND SULCI", "SELLA", "VASCULAR", "ORBITS", "PARANASAL SINUSES",
    "BONES AND SOFT TISSUES", "OTHER",
)  # fmt: skip
_OFTEN_UNREMARKABLE = ("SELLA", "VASCULAR", "ORBITS")
_NONE_LINES = {
    "HEMORRHAGE": "intracranial_hemorrhage",
    "MASS EFFECT": "brain_mass_effect",
    "MIDLINE SHIFT": "midline_shift",
}
_BRITISH = {
    "hemorrh": "haemorrh", "hematoma": "haematoma", "edema": "oedema", "tumor": "tumour",
    "ischemi": "ischaemi", "center": "centre", "gray": "grey",
}  # fmt: skip
_LOBES_MM = {
    "frontal": (30.0, -44.0, 28.0), "parietal": (32.0, 32.0, 38.0),
    "temporal": (45.0, 0.0, -16.0), "occipital": (26.0, 58.0, 14.0),
}  # fmt: skip
_NUCLEI_MM = {"putamen": (26.0, -12.0, 4.0), "thalamus": (13.0, 3.0, 8.0)}
_TERRITORIES_MM = {"MCA": (46.0, -2.0, 20.0), "PCA": (20.0, 62.0, 10.0), "ACA": (12.0, -42.0, 38.0)}
_ADJECTIVES = {"putamen": "putaminal", "thalamus": "thalamic"}


@cache
def _phrases() -> dict[str, Any]:
    with Path(__file__).with_name("phrases.toml").open("rb") as file:
        return tomllib.load(file)


def write_report(visit: Visit, ids: Identifiers, rng: np.random.Generator) -> WrittenReport:
    """Write the report of one study.

    Every planted label is stated present or, sometimes, hedged; more general labels
    (`intracranial_hemorrhage` beside a subdural hematoma) follow from the exact one.
    Nothing that was not planted is stated present.

    Returns
    -------
    WrittenReport
        `states` holds present, uncertain, absent (denied in words) and historical;
        a label it does not hold was not spoken of.
    """
    if rng.random() < 0.02:
        return WrittenReport("", "", {})
    dictation = _Dictation(visit, ids, rng)
    dictation.decide()
    text = _in_layout(dictation)
    return WrittenReport(text, dictation.addendum_text(), dict(sorted(dictation.states.items())))


@dataclass
class _Dictation:
    """What one radiologist says about one study, sentence by sentence."""

    visit: Visit
    ids: Identifiers
    rng: np.random.Generator
    states: dict[str, LabelState] = field(default_factory=dict)
    findings: list[tuple[str, str]] = field(default_factory=list)  # heading, sentence
    impression: list[str] = field(default_factory=list)
    addendum: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.phrases = _phrases()
        self.frames = self.phrases["frames"]
        self.modality = self.visit.modality
        self.key = self.modality.value.lower()
        self.planted = truth_labels(self.visit.findings, self.modality.value)
        habit = rng_for(self.visit.seed, "habit", self.ids.peek("reading_physician_spoken"))
        self.layout = str(habit.choice(["prose", "prose", "template", "capitals", "terse"]))
        self.british = bool(habit.random() < 0.25)
        self.lists_negatives = bool(habit.random() < 0.5)
        self.typo_rate = float(habit.choice([0.0, 0.0, 0.03]))

    def pick(self, options: list[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def decide(self) -> None:
        """Say everything, most important first; then deny, recall and hedge."""
        stated = [label for label in self.planted if not self._left_to_inference(label)]
        direct = [finding.label for finding in self.visit.findings]
        stated.sort(key=lambda label: (direct.index(label) if label in direct else len(direct), label))
        hedged = self._hedged(direct)
        adds_finding = self.rng.random() < 0.08
        for label in stated:
            if adds_finding and label in _MINOR and not self.addendum:
                self.addendum.append(f"On further review: {self._sentence(label, 'findings')}")
                self.states[label] = LabelState.PRESENT
            elif label == hedged:
                self._hedge(label)
            else:
                self._state_present(label)
        for label in set(self.planted) - set(stated):
            causes = [finding.label for finding in self.visit.findings if label in finding.implied]
            sure = any(self.states[cause] is LabelState.PRESENT for cause in causes)
            self.states[label] = LabelState.PRESENT if sure else LabelState.UNCERTAIN
        self._say_what_resolved()
        self._maybe_something_else()
        self._say_history()
        self._deny()
        if not self.impression:
            normal = self.frames["normal_impression"]
            self.impression.append(normal[0] if self.planted else self.pick(normal))

    def _left_to_inference(self, label: str) -> bool:
        return label in _GENERAL and any(label in finding.implied for finding in self.visit.findings)

    def _hedged(self, direct: list[str]) -> str:
        """Return the one label to hedge, or "": an effect that is certain leaves no doubt about its cause."""
        unsure = [f.label for f in self.visit.findings if set(f.implied) <= _GENERAL]
        wanted = self.rng.random() < 0.15
        return self.pick(unsure) if unsure and wanted else ""

    def _state_present(self, label: str) -> None:
        self.states[label] = LabelState.PRESENT
        sentence = self._sentence(label, "findings")
        if change := self.visit.changes.get(label):
            prior = f"the study of {self.ids['prior_study_date_us']}"
            sentence += " " + self.pick(self.frames[change]).format(prior=prior)
        self.findings.append((self._heading(label), sentence))
        if self.layout == "terse" or label not in _MINOR or self.rng.random() < 0.6:
            self.impression.append(self._sentence(label, "impression"))

    def _hedge(self, label: str) -> None:
        self.states[label] = LabelState.UNCERTAIN
        self.findings.append((self._heading(label), self._framed("uncertain", label)))
        self.impression.append(self._framed("uncertain", label))

    def _say_what_resolved(self) -> None:
        for finding in self.visit.resolved:
            if not self._spoken_of(finding.label):
                self.states[finding.label] = LabelState.ABSENT
                sentence = self._framed("resolved", finding.label, finding)
                self.findings.append((self._heading(finding.label), sentence))
                self.impression.append(self._framed("resolved", finding.label, finding))

    def _maybe_something_else(self) -> None:
        """Now and then a doubt about something that is not there; an addendum may settle it."""
        label = self.pick(self.phrases["maybe"][self.key])
        if self.rng.random() < 0.08 and not self._spoken_of(label):
            self._hedge(label)
            if self.rng.random() < 0.35 and not self.addendum:
                noun = self._noun(label)
                self.addendum.append(f"On comparison with outside studies this is an artifact. No {noun} is present.")
                self.states[label] = LabelState.ABSENT

    def _say_history(self) -> None:
        label = self.pick(self.phrases["historical"][self.key])
        surgery = [s for s in self.planted if _has_word(s, ("craniotomy", "cavity"))]
        if self.rng.random() < (0.4 if surgery else 0.1) and not self._spoken_of(label):
            self.states[label] = LabelState.HISTORICAL
            self.findings.append((self._heading(label), self._framed("historical", label)))
            if self.layout == "terse":
                self.impression.append(self._framed("historical", label))

    def _deny(self) -> None:
        """Deny some of what is not there, one by one or as a list."""
        candidates = [label for label in self.phrases["negative"][self.key] if not self._spoken_of(label)]
        chosen = [str(label) for label in self.rng.permutation(candidates)][: int(self.rng.integers(2, 7))]
        # The later, more exact denial would contradict nothing, yet nobody says both.
        if "intracranial_hemorrhage" in chosen:
            chosen = [label for label in chosen if label != "subdural_hematoma"]
        self.states.update(dict.fromkeys(chosen, LabelState.ABSENT))
        if self.layout == "template":
            for label in [label for label in chosen if self._none_heading(label)]:
                self.findings.append((self._none_heading(label), "None."))
                chosen.remove(label)
        denials = []
        if self.lists_negatives and len(chosen) >= 3:
            a, b, c = (self._noun(label) for label in chosen[:3])
            denials.append(self.pick(self.frames["absent_list"]).format(a=a, b=b, c=c, A=_capital(a)))
            chosen = chosen[3:]
        denials += [self._framed("absent", label) for label in chosen]
        if self.layout == "terse":  # it has no findings section
            self.impression += denials
        else:
            self.findings += [("OTHER", sentence) for sentence in denials]
            if chosen and self.rng.random() < 0.3:
                self.impression.append(self._framed("absent", chosen[0]))

    @staticmethod
    def _none_heading(label: str) -> str:
        wanted = label.removeprefix("brain_") if label.endswith("midline_shift") else label
        return next((heading for heading, name in _NONE_LINES.items() if name == wanted), "")

    def _spoken_of(self, label: str) -> bool:
        """Whether a label, or one that would contradict its denial, already has a state."""
        words = _CONTRADICTED_BY.get(label, (label,))
        live = [name for name in self.states if not name.startswith("scalp")]
        return label in self.states or any(_has_word(name, words) for name in live)

    def normal_sentences(self) -> list[tuple[str, str]]:
        """Return the normal statements that nothing here contradicts."""
        doubtful = {s for s, state in self.states.items() if state is not LabelState.ABSENT} | {f"modality_{self.key}"}
        normal = [entry for entry in self.phrases["normal"] if not doubtful & set(entry["unless"])]
        return [(entry["heading"], self.pick(entry["text"])) for entry in normal if self.rng.random() < 0.6]

    def addendum_text(self) -> str:
        """Return the addendum, or "": a finding added, a doubt settled, or a call to the ward."""
        ids = self.ids
        if self.addendum:
            signature = f"Addended by {ids['reading_physician_spoken']} on {ids['study_date_us']}."
            return f"{' '.join(self.addendum)}\n{signature}"
        if self.rng.random() < 0.06:
            return (
                f"Findings were communicated to {ids['referring_physician_spoken']} "
                f"at {ids['referring_phone']} on {ids['study_date_us']}."
            )
        return ""

    def _entry(self, label: str) -> dict[str, Any]:
        owner = self._owner(label)
        if label == "cerebral_edema" and owner and owner.label != label:
            return self.phrases["cerebral_edema_implied"]
        if label == "craniotomy_craniectomy" and owner and owner.parameters.get("removed"):
            return self.phrases["craniectomy"]
        entry = self.phrases[label]
        return self.phrases[entry["like"]] if "like" in entry else entry

    def _heading(self, label: str) -> str:
        return self._entry(label).get("heading", "OTHER")

    def _owner(self, label: str) -> Finding | None:
        """Return the finding that a label is about; of several, the one that displaces most."""
        owners = [f for f in self.visit.findings if f.label == label]
        owners = owners or [f for f in self.visit.findings if label in f.implied]
        return max(owners, key=lambda f: f.parameters.get("shift_mm", 0.0), default=None)

    def _sentence(self, label: str, part: str) -> str:
        entry = self._entry(label)
        options = entry.get(f"{part}_{self.key}") or entry[part]
        owner = self._owner(label)
        assert owner is not None, "a planted label has a finding"
        slots = _slots(owner)
        if label.endswith("midline_shift"):
            slots["mm"] = f"{owner.parameters['shift_mm']:.0f}"
        return _filled(self.pick(options), slots)

    def _noun(self, label: str, finding: Finding | None = None) -> str:
        finding = finding or self._owner(label)
        slots = _slots(finding) if finding else {"side": ""}
        return re.sub(r"\s+", " ", self.pick(self._entry(label)["noun"]).format(**slots)).strip()

    def _framed(self, frame: str, label: str, finding: Finding | None = None) -> str:
        noun = self._noun(label, finding)
        return _filled(self.pick(self.frames[frame]), {"noun": noun, "Noun": _capital(noun)})


def _in_layout(said: _Dictation) -> str:
    """Put the sentences under headings, as this radiologist does."""
    visit, ids, rng, frames = said.visit, said.ids, said.rng, said.frames
    exam = "MRI BRAIN" if visit.modality is Modality.MR else "CT HEAD WITHOUT CONTRAST"
    contrast = said.pick(["with and without", "before and after"])
    technique = said.pick(frames[f"technique_{said.key}"]).format(contrast=contrast)
    title = "Mrs." if visit.patient.sex == "F" else "Mr."
    indication = said.pick(frames["indication"])
    if "{name}" in indication:
        indication = indication.format(name=f"{title} {ids['patient_family_name']}")
    indication = indication.replace("{sex_age}", f"{visit.age_years} year old {visit.patient.sex}")
    sentences = said.findings + said.normal_sentences()
    lines = list(_letterhead(said))
    clinical = _Clinical(said)
    lines += [f"EXAM: {exam}", f"{said.pick(['CLINICAL HISTORY', 'INDICATION', 'HISTORY'])}: {indication}"]
    if rng.random() < 0.8:
        lines.append(f"TECHNIQUE: {clinical(technique)}")
    lines.append(f"COMPARISON: {_comparison(said)}")
    if said.layout == "template":
        lines.append("FINDINGS:")
        for heading in _HEADINGS:
            here = [text for place, text in sentences if place == heading]
            if here or (heading in _OFTEN_UNREMARKABLE and rng.random() < 0.5):
                lines.append(f"{heading}: {clinical(' '.join(here) or 'Unremarkable.')}")
    elif said.layout != "terse":
        lines += ["FINDINGS:", clinical(" ".join(text for _, text in sentences))]
    numbered = rng.random() < 0.6
    points = [f"{n}. {text}" if numbered else text for n, text in enumerate(said.impression, 1)]
    gap = " " if said.layout == "capitals" else "\n"
    lines += [f"{said.pick(['IMPRESSION', 'IMPRESSION', 'CONCLUSION'])}:", clinical(gap.join(points))]
    lines += _closing(said)
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Clinical:
    """Spells clinical prose as one radiologist does. Identifiers never pass through here."""

    said: _Dictation

    def __call__(self, text: str) -> str:
        if self.said.british:
            for american, british in _BRITISH.items():
                text = text.replace(american, british).replace(_capital(american), _capital(british))
        text = re.sub(r"\b(There|which|with|unremarkable|visualized|configuration|examination)\b", self._typo, text)
        return text.upper() if self.said.layout == "capitals" else text

    def _typo(self, match: re.Match[str]) -> str:
        """Swap two neighbouring letters of a word that carries no finding."""
        word = match.group()
        if self.said.rng.random() >= self.said.typo_rate:
            return word
        at = int(self.said.rng.integers(1, len(word) - 1))
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _letterhead(said: _Dictation) -> list[str]:
    ids = said.ids
    if said.rng.random() < 0.5:
        return []
    lines = [
        f"{ids['institution_name']}",
        f"PATIENT: {ids['patient_name_capitals']}  MRN: {ids['patient_id']}",
        f"DOB: {ids['patient_birth_date_us']}",
        f"ACCESSION: {ids['accession_number']}  DATE OF EXAM: {ids['study_date_us']}",
    ]
    if said.rng.random() < 0.3:
        lines.append(f"PLAN: {ids['health_plan_number']}  CONTACT: {ids['relative_name']} {ids['relative_phone']}")
    return lines


def _comparison(said: _Dictation) -> str:
    if said.visit.prior_date is None or said.visit.prior_modality is None:
        return said.pick(["None.", "None available."])
    exam = "MRI brain" if said.visit.prior_modality is Modality.MR else "CT head"
    return f"{exam} dated {said.ids['prior_study_date_us']}."


def _closing(said: _Dictation) -> list[str]:
    ids, rng = said.ids, said.rng
    lines = []
    if rng.random() < 0.25:
        lines.append(
            f"These results were discussed with {ids['referring_physician_spoken']} by telephone "
            f"{ids['ward_phone']} at {rng.integers(7, 20)}:{rng.integers(10, 60)} on {ids['study_date_us']}."
        )
    if rng.random() < 0.15:
        lines.append(f"The results were explained to {ids['patient_name_spoken']}.")
    if rng.random() < 0.7:
        lines.append(f"Dictated by: {ids['resident_spoken']}")
        lines.append(f"Electronically signed by {ids['reading_physician_spoken']} on {ids['study_date_long']}")
    return lines


def _slots(finding: Finding) -> dict[str, str]:
    """Return what the sentences may say about where and how large a finding is."""
    side = finding.laterality if finding.laterality in ("left", "right", "bilateral") else ""
    site = _nearest(finding.center_mm, _LOBES_MM)
    deep = finding.label in ("intraparenchymal_hemorrhage", "lacunar_stroke")
    region = _nearest(finding.center_mm, _NUCLEI_MM if finding.label == "lacunar_stroke" else _LOBES_MM | _NUCLEI_MM)
    region = region if deep else site
    size = f"{finding.size_mm / 10:.1f} cm" if finding.size_mm >= 20 else f"{finding.size_mm:.0f} mm"
    slots = {
        "side": side,
        "hemisphere": f"the {side} cerebral hemisphere" if side in ("left", "right") else "both cerebral hemispheres",
        "site": site,
        "region": region if region in _NUCLEI_MM else f"{region} lobe",
        "adjective": _ADJECTIVES.get(region, region),
        "territory": _nearest(finding.center_mm, _TERRITORIES_MM),
        "size": size,
        "mm": f"{finding.size_mm:.0f}",
        "age": finding.age or "subacute",
        "where": {"left": "rightward", "right": "leftward"}.get(side, ""),
        "count": f"{finding.parameters.get('count', 2):.0f}",
    }
    return slots | {_capital(name): _capital(text) for name, text in slots.items()}


def _nearest(center_mm: tuple[float, float, float], places_mm: Mapping[str, tuple[float, float, float]]) -> str:
    """Return the name of the nearest place, either side of the head."""
    point = np.array([abs(center_mm[0]), *center_mm[1:]])
    return min(places_mm, key=lambda name: float(np.linalg.norm(point - np.array(places_mm[name]))))


def _filled(template: str, slots: Mapping[str, str]) -> str:
    text = re.sub(r"\s+", " ", template.format(**{"Side": "", "Where": "", **slots})).strip()
    return _capital(text)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _has_word(label: str, words: tuple[str, ...]) -> bool:
    return any(word in label for word in words)
