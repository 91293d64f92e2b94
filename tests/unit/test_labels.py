"""The rule labeler on sentences written to mislead it."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from neurovfm_core.errors import UsageError
from neurovfm_core.labels import LabelParams, Ontology, explain, label_report, study_labels
from neurovfm_core.labels.sections import Section, normalized, sentences
from neurovfm_core.vocabulary import LabelState, Modality

HERE = Path(__file__).parent
SENTENCES = [json.loads(line) for line in (HERE.parent / "data" / "label_sentences.jsonl").read_text().splitlines()]
REAL_REPORTS = HERE.parents[2] / "shared" / "data" / "reports" / "mtsamples_examples.jsonl"


@pytest.fixture(scope="module")
def ontology() -> Ontology:
    return Ontology.load()


def states_of(text: str, modality: str, ontology: Ontology) -> dict[str, LabelState]:
    return study_labels(label_report(text, modality, ontology), modality, ontology)


@pytest.mark.parametrize(
    "case", SENTENCES, ids=lambda case: f"{case['subject'][:20]}: {case['text'][:60]}".replace("\n", " / ")
)
def test_every_adversarial_sentence_gives_the_state_that_a_reader_gives(case, ontology):
    states = states_of(case["text"], case["modality"], ontology)
    assert {label: states[label].value for label in case["states"]} == case["states"]


def test_there_are_at_least_150_adversarial_sentences_and_no_state_is_forgotten():
    assert len({case["text"] for case in SENTENCES}) >= 150
    assert {state for case in SENTENCES for state in case["states"].values()} == set(LabelState)


def test_the_labels_are_74_and_82_in_the_order_of_the_heads_outputs(ontology):
    mr, ct = ontology.labels("MR"), ontology.labels(Modality.CT)
    assert (len(mr), len(set(mr)), len(ct), len(set(ct))) == (74, 74, 82, 82)
    assert (mr[0], mr[-1]) == ("acute_ischemic_stroke", "viral_encephalitis")
    assert (ct[0], ct[-1]) == ("acute_ischemic_stroke", "ventriculomegaly")
    assert list(mr) == sorted(mr)
    assert list(ct) == sorted(ct)


@pytest.mark.parametrize("modality", Modality)
def test_every_label_has_a_meaning_and_can_be_found_by_its_own_name(modality, ontology):
    unfound = []
    for label in ontology.labels(modality):
        entry = ontology.entry(label, modality)
        assert entry.definition.endswith(".")
        assert entry.urgency in {"urgent", "routine", "none"}
        assert set(entry.implies) <= set(ontology.labels(modality))
        spoken = label.replace("rathkes", "rathke's").split("_")
        text = f"There is {' '.join(spoken)}."
        if states_of(text, modality.value, ontology)[label] is not LabelState.PRESENT:
            unfound.append(label)
    assert unfound == []


def test_implications_are_followed_to_the_end_and_stay_within_the_modality(ontology):
    assert ontology.implied("high_grade_glioma", "MR") == ("glioma", "brain_tumor")
    assert ontology.implied("epidural_hematoma", "CT") == ("intracranial_hemorrhage",)
    assert ontology.implied("meningioma", "MR") == ("brain_tumor",)
    assert ontology.implied("sinusitis", "CT") == ()


def test_a_label_of_the_other_modality_is_refused(ontology):
    with pytest.raises(UsageError, match="not a label of MR"):
        ontology.entry("sinusitis", "MR")


def test_laterality_is_that_of_the_nearest_side(ontology):
    text = "Right frontal contusion and a left epidural hematoma. Bilateral subdural hygromas. Large hygroma."
    sides = {
        (mention.label, mention.start): mention.laterality
        for mention in label_report(text, "CT", ontology)
        if not mention.is_implied
    }
    assert sorted(sides.values()) == ["bilateral", "left", "none", "right"]
    assert next(side for (label, _), side in sides.items() if label == "epidural_hematoma") == "left"


def test_an_implied_mention_names_its_child_and_shows_the_childs_evidence(ontology):
    mentions = label_report("Small left epidural hematoma.", "CT", ontology)
    child, parent = mentions
    assert (parent.label, parent.rule) == ("intracranial_hemorrhage", "implied_by:epidural_hematoma")
    assert parent.evidence == child.evidence == "epidural hematoma"


def test_a_denial_does_not_deny_what_it_implies(ontology):
    mentions = label_report("No epidural hematoma.", "CT", ontology)
    assert [mention.label for mention in mentions] == ["epidural_hematoma"]


def test_evidence_holds_the_deciding_words(ontology):
    (mention,) = label_report("Acute infarct is considered unlikely.", "MR", ontology)
    assert mention.evidence == "Acute infarct is considered unlikely"


def test_explain_marks_the_evidence_and_names_the_rule(ontology):
    page = explain("FINDINGS: No midline shift. Left epidural hematoma.", "CT", ontology)
    assert ">>No midline shift<<" in page
    assert "midline_shift: absent, midline (findings; negated_before)" in page
    assert "present    epidural_hematoma" in page
    assert explain("Normal.", "CT", ontology).count("none mentioned") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Seen by Dr. Smith vs. prior. Width 1.2 cm. End", 3),
        ("TECHNIQUE: CT.\nFINDINGS: One. Two.", 2),
        ("History: fall.\n\nOne. Two.", 2),
        ("", 0),
        ("...", 0),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text, expected):
    assert len(list(sentences(normalized(text)))) == expected


def test_sections_are_found_inside_a_run_on_of_dictation():
    text = normalized("EXAM: , CT.,FINDINGS: , One.,IMPRESSION: , Two.\nADDENDUM 2: Three.")
    assert [span.section for span in sentences(text)] == [
        Section.FINDINGS,
        Section.IMPRESSION,
        Section.ADDENDUM,
    ]


def test_a_site_extends_the_lexicon_and_the_version_says_so(tmp_path, ontology):
    path = tmp_path / "site.toml"
    path.write_text('[label.meningioma]\nterms = ["meningeal thing"]\nurgency = "urgent"\n')
    site = Ontology.load(path)
    assert states_of("A meningeal thing.", "MR", ontology)["meningioma"] is LabelState.NOT_MENTIONED
    assert states_of("A meningeal thing.", "MR", site)["meningioma"] is LabelState.PRESENT
    assert states_of("A meningioma.", "MR", site)["meningioma"] is LabelState.PRESENT
    assert site.entry("meningioma", "MR").urgency == "urgent"
    assert site.version != ontology.version == Ontology.load().version


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[label.hiccups]\nterms = ["hiccup"]\n', "unknown labels: hiccups"),
        ('[label.meningioma]\nterm = ["x"]\n', "wrong value"),
        ('[label.meningioma]\nurgency = "soon"\n', "wrong value"),
        ('[label.meningioma]\nterms = ["a(b"]\n', "not a pattern"),
        ('[label.meningioma]\nterms = ["@nothing"]\n', "no set nothing"),
        ('[label.meningioma]\nwhen = ["green"]\n', "unknown attribute green"),
        ('[order]\nMR = ["meningioma"]\n', "cannot change the order"),
        ("label = [", "not a TOML file"),
    ],
)
def test_a_wrong_site_file_is_refused_before_anything_starts(tmp_path, content, message):
    path = tmp_path / "site.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        Ontology.load(path)


def test_a_missing_site_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        Ontology.load(tmp_path / "none.toml")


def test_params_know_one_engine_and_refuse_others():
    assert LabelParams().engine == "rules"
    with pytest.raises(ValidationError):
        LabelParams(engine="oracle")  # type: ignore[arg-type]


REAL_STATES = {
    ("mts1565", "MR"): {
        "present": [],
        "absent": ["acute_ischemic_stroke", "obstructive_hydrocephalus", "brain_midline_shift"],
    },
    ("mts1669", "CT"): {
        "present": [],
        "absent": ["obstructive_hydrocephalus", "midline_shift", "sinusitis", "intra_axial_brain_tumor"],
    },
    ("mts1689", "CT"): {
        "present": ["sinusitis"],
        "absent": [
            "intracranial_hemorrhage",
            "acute_ischemic_stroke",
            "midline_shift",
            "brain_mass_effect",
            "mastoid_effusion",
        ],
    },
    ("mts1579", "MR"): {
        "present": [
            "small_vessel_ischemic_disease",
            "chronic_ischemic_stroke",
            "lacunar_stroke",
            "cerebral_atrophy",
        ],
        "absent": ["acute_ischemic_stroke", "chiari_malformation", "brain_mass_effect"],
    },
}


@pytest.mark.real_data
@pytest.mark.skipif(not REAL_REPORTS.exists(), reason="the real reports are not beside the repository")
def test_the_real_reports_give_what_a_reader_finds_in_them(ontology):
    reports = {report["id"]: report["text"] for report in map(json.loads, REAL_REPORTS.read_text().splitlines())}
    for (report, modality), wanted in REAL_STATES.items():
        states = states_of(reports[report], modality, ontology)
        absent = {label for label, state in states.items() if state is LabelState.ABSENT}
        assert set(wanted["absent"]) <= absent, report
        assert {name for name in states if states[name] is LabelState.PRESENT} == set(wanted["present"]), report
