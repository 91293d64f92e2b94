"""Laws of the rule labeler, on reports put together from the adversarial sentences and on any text."""

import json
import re
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from neurovfm_core.labels import Ontology, label_report, study_labels
from neurovfm_core.labels.rules import STRENGTH, Mention
from neurovfm_core.labels.sections import Section, normalized
from neurovfm_core.vocabulary import LabelState

ONTOLOGY = Ontology.load()
CASES = [
    json.loads(line) for line in (Path(__file__).parents[1] / "data" / "label_sentences.jsonl").read_text().splitlines()
]
MODALITIES = st.sampled_from(["MR", "CT"])
SENTENCES = st.sampled_from([case["text"] for case in CASES])
REPORTS = st.lists(SENTENCES, min_size=1, max_size=5).map("\n".join)
FEW = settings(max_examples=80, deadline=None)


def states_of(text, modality):
    return study_labels(label_report(text, modality, ONTOLOGY), modality, ONTOLOGY)


@FEW
@given(text=REPORTS | st.text(max_size=300), modality=MODALITIES)
def test_evidence_is_verbatim(text, modality):
    for mention in label_report(text, modality, ONTOLOGY):
        assert text[mention.start : mention.end] == mention.evidence
        assert mention.evidence.strip()


@FEW
@given(text=st.text(max_size=200))
def test_normalizing_keeps_every_character_in_its_place(text):
    lower = normalized(text)
    assert len(lower) == len(text)
    assert normalized(lower) == lower


@FEW
@given(text=REPORTS, modality=MODALITIES)
def test_capitals_change_nothing(text, modality):
    plain = label_report(text, modality, ONTOLOGY)
    for other in (text.upper(), text.lower()):
        loud = label_report(other, modality, ONTOLOGY)
        assert [(m.label, m.state, m.start, m.end, m.rule, m.laterality) for m in loud] == [
            (m.label, m.state, m.start, m.end, m.rule, m.laterality) for m in plain
        ]


@FEW
@given(case=st.sampled_from(CASES), blanks=st.sampled_from(["  ", "\t", " \t ", "\u00a0"]))
def test_more_blanks_change_no_state(case, blanks):
    text = case["text"].replace(" ", blanks)
    assert states_of(text, case["modality"]) == states_of(case["text"], case["modality"])


BRITISH = {
    "hemorrh": "haemorrh",
    "edema": "oedema",
    "hematoma": "haematoma",
    "tumor": "tumour",
    "ischemi": "ischaemi",
}


@FEW
@given(case=st.sampled_from(CASES), spelling=st.sampled_from(sorted(BRITISH.items())))
def test_british_spelling_changes_no_state(case, spelling):
    american, british = spelling
    # "oedema" ends in "edema": a word that is British already stays as it is.
    text = re.sub(rf"(?<!o){american}", british, case["text"])
    assert states_of(text, case["modality"]) == states_of(case["text"], case["modality"])


@FEW
@given(text=REPORTS, modality=MODALITIES)
def test_labelling_twice_gives_the_same_and_saying_it_twice_changes_no_state(text, modality):
    mentions = label_report(text, modality, ONTOLOGY)
    assert mentions == label_report(text, modality, ONTOLOGY)
    once = study_labels(mentions, modality, ONTOLOGY)
    assert once == study_labels(mentions + mentions, modality, ONTOLOGY)
    assert list(once) == list(ONTOLOGY.labels(modality))


@st.composite
def some_mentions(draw, modality):
    labels = st.sampled_from(ONTOLOGY.labels(modality))
    said = st.sampled_from([state for state in LabelState if state is not LabelState.NOT_MENTIONED])
    sections = st.sampled_from([Section.FINDINGS, Section.IMPRESSION, Section.ADDENDUM])
    rules = st.sampled_from(["affirmed", "negated_before", "negated_qualified"])
    return [
        Mention(draw(labels), draw(said), "none", "x", 0, 1, draw(rules), draw(sections))
        for _ in range(draw(st.integers(0, 12)))
    ]


@FEW
@given(data=st.data(), modality=MODALITIES)
def test_no_parent_is_weaker_than_its_present_or_uncertain_child(data, modality):
    states = study_labels(data.draw(some_mentions(modality)), modality, ONTOLOGY)
    for label, state in states.items():
        if state in (LabelState.PRESENT, LabelState.UNCERTAIN):
            for parent in ONTOLOGY.implied(label, modality):
                assert STRENGTH[states[parent]] >= STRENGTH[state]


@FEW
@given(data=st.data(), modality=MODALITIES)
def test_one_more_affirmation_in_the_last_section_weakens_nothing(data, modality):
    mentions = data.draw(some_mentions(modality))
    label = data.draw(st.sampled_from(ONTOLOGY.labels(modality)))
    more = Mention(label, LabelState.PRESENT, "none", "x", 0, 1, "affirmed", Section.ADDENDUM)
    before = study_labels(mentions, modality, ONTOLOGY)
    after = study_labels([*mentions, more], modality, ONTOLOGY)
    assert after[label] is LabelState.PRESENT
    assert all(STRENGTH[after[name]] >= STRENGTH[before[name]] for name in before)


@FEW
@given(data=st.data(), modality=MODALITIES)
def test_the_order_of_mentions_does_not_matter(data, modality):
    mentions = data.draw(some_mentions(modality))
    shuffled = data.draw(st.permutations(mentions))
    assert study_labels(mentions, modality, ONTOLOGY) == study_labels(shuffled, modality, ONTOLOGY)
