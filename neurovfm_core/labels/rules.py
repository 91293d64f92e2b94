"""The rule engine: a report's text becomes mentions, mentions become one state per label."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from neurovfm_core.labels.assertion import CueFinder, Sentence
from neurovfm_core.labels.lexicon import Candidate, FoundAttribute, Hit, Lexicon, TermGroup
from neurovfm_core.labels.ontology import Ontology
from neurovfm_core.labels.sections import Section, normalized, sentences
from neurovfm_core.params import Params
from neurovfm_core.vocabulary import LabelState, Modality

RULES_VERSION = "1"
"""Rises when the same report and ontology would give other mentions or states."""

Laterality = Literal["left", "right", "bilateral", "midline", "none"]

STRENGTH = {
    LabelState.NOT_MENTIONED: 0,
    LabelState.ABSENT: 1,
    LabelState.HISTORICAL: 2,
    LabelState.UNCERTAIN: 3,
    LabelState.PRESENT: 4,
}
"""Within one section the stronger statement holds."""

WEAK_DENIALS = frozenset({"negated_qualified", "normal_statement"})
"""Denials that do not overrule an earlier section: "no acute hemorrhage" leaves a chronic one in place."""

UNSPECIFIED_KIND = "unspecified_kind"
"""A subarachnoid hemorrhage of unknown cause: either kind is uncertain, the hemorrhage is not."""

_SIDES = re.compile(r"(?<!\w)(?:(left|leftward)|(right|rightward)|(bilateral(?:ly)?|both)|(midline))(?!\w)")
_SIDE_NAMES: tuple[Laterality, ...] = ("left", "right", "bilateral", "midline")
_LIST_LINK = re.compile(r"[\s,/]*(?:and|or|nor|and/or)?[\s,/]*(?:\w+\s+){0,2}")
_CUT = re.compile(r"[,;:]|\b(?:and|or|but|with|without|no|which|however)\b")
_REACH = 55
"""Characters beside a term in which its attributes and its side are looked for."""


class LabelParams(Params):
    """How reports become labels."""

    engine: Literal["rules"] = "rules"
    """The labeler. `rules` needs no network and no model."""
    ontology_path: Path | None = None
    """A site's own TOML file that extends the packaged ontology; empty for the packaged one alone."""


@dataclass(frozen=True, slots=True)
class Mention:
    """One label at one place of a report. `text[start:end] == evidence`, letter for letter."""

    label: str
    state: LabelState
    laterality: Laterality
    evidence: str
    start: int
    end: int
    rule: str
    section: Section = Section.FINDINGS

    @property
    def is_implied(self) -> bool:
        """Whether the label was not said but follows from one that was."""
        return self.rule.startswith("implied_by:")


def label_report(text: str, modality: Modality | str, ontology: Ontology) -> list[Mention]:
    """Find every label a report mentions, with its state and the words that prove it.

    Parameters
    ----------
    text
        The report as it is; offsets refer to it. Indication, history, technique and comparison are not read.

    Returns
    -------
    list of Mention
        In the order of the text; after each mention the labels it implies (present, uncertain and
        historical ones carry over, a denial does not).
    """
    lower = normalized(text)
    lexicon = ontology.lexicon(modality)
    finder = _cue_finder(ontology)
    found: dict[Mention, None] = {}
    for span in sentences(lower):
        hits = lexicon.find(lower, span.start, span.end)
        if not hits:
            continue
        cues = finder.find(lower, span.start, span.end, hits)
        sentence = Sentence(lower, span.start, span.end, hits, cues)
        for mention in _Reader(text, sentence, span.section, lexicon).mentions():
            found[mention] = None
            if mention.state is LabelState.ABSENT:
                continue
            for parent in ontology.implied(mention.label, modality):
                state = LabelState.PRESENT if mention.rule == UNSPECIFIED_KIND else mention.state
                found[replace(mention, label=parent, state=state, rule=f"implied_by:{mention.label}")] = None
    return list(found)


def study_labels(mentions: Iterable[Mention], modality: Modality | str, ontology: Ontology) -> dict[str, LabelState]:
    """Settle one state for every label of a modality.

    The addendum overrules the impression, and that the findings; but a weak denial ("no new ...", "no
    acute ..." of a label of any age, a statement of normality) does not overrule an earlier section.
    Within a section present goes over uncertain over historical over absent. Then implications are drawn
    from the settled states: no parent of a present or uncertain label is weaker than it. Labels without
    a mention are NOT_MENTIONED. without a mention are NOT_MENTIONED.
    """
    said: dict[str, list[Mention]] = {}
    for mention in mentions:
        if not mention.is_implied:
            said.setdefault(mention.label, []).append(mention)
    settled = {label: _settled(own) for label, own in said.items()}
    states = dict.fromkeys(ontology.labels(modality), LabelState.NOT_MENTIONED)
    states |= {label: state for label, (state, _) in settled.items()}
    for label, (_, for_parents) in settled.items():
        for parent in ontology.implied(label, modality):
            # What is over contradicts no denial of today, so it only breaks a silence.
            if for_parents in _CARRIED or states[parent] is LabelState.NOT_MENTIONED:
                states[parent] = max(states[parent], for_parents, key=STRENGTH.__getitem__)
    return states


_CARRIED = frozenset({LabelState.PRESENT, LabelState.UNCERTAIN})


def _settled(mentions: Sequence[Mention]) -> tuple[LabelState, LabelState]:
    """Return the state of a label, and the state that it hands to the labels it implies."""
    denied = False
    for section in sorted({mention.section for mention in mentions}, reverse=True):
        own = [mention for mention in mentions if mention.section is section]
        strongest = max(own, key=lambda mention: STRENGTH[mention.state]).state
        if strongest is not LabelState.ABSENT:
            unknown_kind = any(mention.rule == UNSPECIFIED_KIND for mention in own)
            return strongest, LabelState.PRESENT if unknown_kind else strongest
        if any(mention.rule not in WEAK_DENIALS for mention in own):
            return LabelState.ABSENT, LabelState.NOT_MENTIONED
        denied = True
    return (LabelState.ABSENT if denied else LabelState.NOT_MENTIONED), LabelState.NOT_MENTIONED


@lru_cache(maxsize=8)
def _cue_finder(ontology: Ontology) -> CueFinder:
    return CueFinder(ontology.data.cues)


@dataclass(frozen=True, slots=True)
class _Term:
    """One hit with what its neighbourhood says of it."""

    index: int
    asked: frozenset[str]  # attributes that decide between the candidates
    own: Sequence[FoundAttribute]  # of these, those beside the term
    shared: frozenset[str]  # of these, those of the list that the term stands in
    side: Laterality


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the mentions of one sentence."""

    text: str  # the report as it is
    sentence: Sentence
    section: Section
    lexicon: Lexicon

    def mentions(self) -> Iterator[Mention]:
        for term in self._terms():
            for candidate in self.sentence.hits[term.index].candidates:
                if mention := self._mention(term, candidate):
                    yield mention

    def _terms(self) -> Iterator[_Term]:
        sentence = self.sentence
        # "new since the prior study", "remote history of": no age of the finding.
        elsewhere = [
            cue
            for cue in sentence.cues
            if cue.kind == "prior_reference"
            or (cue.kind == "history_before" and sentence.text.endswith("of", cue.start, cue.end))
        ]
        inherited: Sequence[FoundAttribute] = ()
        for index, hit in enumerate(sentence.hits):
            before, after = _surroundings(sentence, index)
            own = [
                attribute
                for attribute in self.lexicon.attributes.find(sentence.text, before, after)
                if not any(cue.start < attribute.end and attribute.start < cue.end for cue in elsewhere)
            ]
            previous = sentence.hits[index - 1].end
            if not own and index and _LIST_LINK.fullmatch(sentence.text, previous, hit.start):
                shared = inherited
            else:
                shared = own
            asked = frozenset(name for candidate in hit.candidates for name in candidate.group.when)
            yield _Term(
                index,
                asked,
                [attribute for attribute in own if attribute.name in asked],
                frozenset(attribute.name for attribute in shared) & asked,
                _side(sentence.text, before, hit, after),
            )
            inherited = shared

    def _mention(self, term: _Term, candidate: Candidate) -> Mention | None:
        hit, group = self.sentence.hits[term.index], candidate.group
        chosen = next((attribute for attribute in term.own if attribute.name in group.when), None)
        ignored = (chosen.start, chosen.end) if chosen else (0, 0)
        judged = self.sentence.judge(term.index, ignored=ignored, lasting=group.lasting)
        state, rule, cue = judged.state, judged.rule, judged.cue
        if candidate.kind == "normal":
            if state is not LabelState.PRESENT:
                return None
            state, rule = LabelState.ABSENT, "normal_statement"
        elif (candidate.kind == "only_absent" and state is not LabelState.ABSENT) or (
            candidate.kind == "only_present" and state is LabelState.ABSENT
        ):
            return None
        elif group.when and chosen is None and candidate.kind != "only_absent":
            unspecified = self._without_attribute(term, group, state)
            rule = rule if unspecified is state else UNSPECIFIED_KIND
            state = unspecified
        if state is None:
            return None
        if rule == "negated_qualified" and chosen and cue and chosen.start < cue.end:
            rule = "negated_before"  # "no acute infarct" denies an acute infarct without reserve
        start, end = hit.start, hit.end
        for mark in (chosen, cue):
            if mark:
                start, end = min(start, mark.start), max(end, mark.end)
        evidence = self.text[start:end]
        return Mention(candidate.label, state, term.side, evidence, start, end, rule, self.section)

    def _without_attribute(self, term: _Term, group: TermGroup, state: LabelState | None) -> LabelState | None:
        """Return the state of a label whose attribute is not beside the term; None if it is not meant."""
        if state is None or term.own:
            return None
        if state is LabelState.ABSENT:
            # "no acute infarct or hemorrhage" shares its adjective, but only where it denies.
            return None if term.shared and not term.shared & set(group.when) else state
        if group.report_wide:
            said = {found.name for found in self.lexicon.attributes.find(self.sentence.text)}
            if said & set(group.when):
                return state
            if said & term.asked:
                return None
        if group.unspecified == "none":
            return None
        if group.unspecified == "uncertain" and state is LabelState.PRESENT:
            return LabelState.UNCERTAIN
        return state


def _surroundings(sentence: Sentence, index: int) -> tuple[int, int]:
    """Return where the words around a term begin and end that belong to it and not to its neighbour."""
    hit, text = sentence.hits[index], sentence.text
    before = max(sentence.start, hit.start - _REACH)
    if index:
        before = max(before, sentence.hits[index - 1].end)
    for cue in sentence.cues:
        if cue.kind in ("ends", "predicate") and cue.end <= hit.start:
            before = max(before, cue.end)
    after = min(sentence.end, hit.end + _REACH)
    if index + 1 < len(sentence.hits):
        after = min(after, sentence.hits[index + 1].start)
        if cut := _CUT.search(text, hit.end, after):
            after = cut.start()
    for cue in sentence.cues:
        if cue.kind == "ends" and hit.end <= cue.start < after:
            after = cue.start
    return before, after


def _side(text: str, before: int, hit: Hit, after: int) -> Laterality:
    sides = [
        (_SIDE_NAMES[(match.lastindex or 1) - 1], match.start(), match.end())
        for match in _SIDES.finditer(text, before, after)
    ]
    if not sides:
        return "none"
    names = {name for name, _, _ in sides}
    if "bilateral" in names or {"left", "right"} <= names:
        return "bilateral"
    return min(sides, key=lambda side: max(hit.start - side[2], side[1] - hit.end, 0))[0]
