"""Is a mentioned term affirmed, doubted, denied, gone, or only talked about?

The method is that of NegEx and ConText (Chapman et al. 2001; Harkema et al. 2009): cue words act on the
terms in their scope, forwards or backwards, until something ends the scope. Added here: template lines
("Hemorrhage: none"), predicates of lists ("A, B and C are absent"), and double negatives.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neurovfm_core.errors import UsageError
from neurovfm_core.labels.lexicon import Hit
from neurovfm_core.vocabulary import LabelState

# Earlier kinds win where two cues begin at the same place.
KINDS = (
    "pseudo",
    "double_negative_before",
    "double_negative_after",
    "gone_after",
    "treated_after",
    "not_counted",
    "prior_reference",
    "gone_before",
    "treated_before",
    "negated_after",
    "uncertain_after",
    "negated_qualified",
    "negated_before",
    "history_before",
    "uncertain_list",
    "uncertain_before",
    "ends",
    "starts",
    "predicate",
    "verbs",
    "not_counted_after",
    "treated_adjacent_after",
)
SIGNS = ("sign_negated_after", "sign_uncertain_after", "sign_uncertain_before", "sign_ends")
MACROS = ("seen", "changed", "surgery")

_KIND_OF_SIGN = {sign: sign.removeprefix("sign_") for sign in SIGNS}
_AFTER = frozenset({"double_negative_after", "gone_after", "treated_after", "negated_after", "uncertain_after"})
_BEFORE = frozenset(
    {
        "double_negative_before",
        "negated_before",
        "negated_qualified",
        "gone_before",
        "treated_before",
        "history_before",
        "uncertain_before",
        "uncertain_list",
        "not_counted",
    }
)
_ADJACENT_AFTER = frozenset({"not_counted_after", "treated_adjacent_after"})
_DENIALS = frozenset({"negated_before", "negated_qualified"})
# "possible infarct, with edema": doubt and history stop at the next clause, a negation runs through its list.
_NARROW = frozenset({"history_before", "gone_before", "treated_before", "uncertain_before"})
_NARROW_REACH_WORDS = 9

# The first kind found decides.
_PRECEDENCE: tuple[tuple[str, LabelState | None], ...] = (
    ("not_counted", None),
    ("not_counted_after", None),
    ("double_negative_after", LabelState.UNCERTAIN),
    ("double_negative_before", LabelState.UNCERTAIN),
    ("negated_before", LabelState.ABSENT),
    ("negated_qualified", LabelState.ABSENT),
    ("gone_after", LabelState.ABSENT),
    ("treated_after", LabelState.HISTORICAL),
    ("negated_after", LabelState.ABSENT),
    ("treated_adjacent_after", LabelState.HISTORICAL),
    ("gone_before", LabelState.ABSENT),
    ("treated_before", LabelState.HISTORICAL),
    ("history_before", LabelState.HISTORICAL),
    ("uncertain_after", LabelState.UNCERTAIN),
    ("uncertain_before", LabelState.UNCERTAIN),
    ("uncertain_list", LabelState.UNCERTAIN),
)


@dataclass(frozen=True, slots=True)
class Cue:
    """A cue word at its place."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """The state of one term and why; `state` is None where the term says nothing about the patient now."""

    state: LabelState | None
    rule: str
    cue: Cue | None = None


AFFIRMED = Judgement(LabelState.PRESENT, "affirmed")


def _spaced(pattern: str) -> re.Pattern[str]:
    """Compile a pattern in which a blank is any run of blanks."""
    return re.compile(pattern.replace(" *", r"\s*").replace(" ", r"\s+"))


_OR = re.compile(r"[\s,]*(?:\w+[\s-]+){0,2}(?:or|vs\.?|versus)\s+(?:\w+[\s-]+){0,3}")
_CLAUSE = _spaced(r",(?![^.;]*\bor\b)|\bwith\b|\bnow\b|\band (?=there\b|the\b|an?\b|no\b)")
# "No edema around the meningioma": the place of what is denied is there.
_PLACE = re.compile(
    r"\w\s+(?:in|within|around|along|at|near|beneath|surrounding|adjacent to|deep to)\s+"
    r"(?:the|this|his|her|known)\s+(?:\w+\s+){0,2}$"
)
_KEY_REST = re.compile(r"[\s/,&()+-]*(?:(?:and|or|present|status|presence|score|type)\b[\s/,&-]*)*:")
_VALUE_NO = _spaced(
    r" *(?:none|no(?:t (?:seen|present|identified|evident|visualized))?|absent|negative|nil|normal"
    r"|unremarkable|false|n|0(?: *mm)?|(?:(?:now|completely|fully) )?(?:resolved|removed|no longer))\b"
)
_VALUE_NO_CHANGE = _spaced(r" *no (?:\w+ ){0,2}(?:change|increase|decrease|progression)")
_VALUE_YES = _spaced(
    r" *(?:yes|y|present|positive|true|mild|moderate|severe|small|large|trace|tiny|minimal|marked|slight"
    r"|approximately|stable|unchanged|increas|decreas|similar|acute|chronic|left|right"
    r"|bilateral|there (?:is|are)|an? |seen|noted|again|\d)"
)
_VALUE_DOUBT = _spaced(
    r" *(?:possible|probable|likely|questionable|equivocal|indeterminate|suspected|uncertain|cannot)\b"
)


class CueFinder:
    """All cue words in one pattern. Expects lower-case text."""

    def __init__(self, cues: Mapping[str, Sequence[str]]) -> None:
        if wrong := set(cues) ^ {*KINDS, *SIGNS, *MACROS}:
            raise UsageError(f"unknown or missing lists of cues: {', '.join(sorted(wrong))}", where="cues.toml")
        macros = {name: f"(?:{'|'.join(cues[name])})" for name in MACROS}
        self._kinds = [*KINDS, *(_KIND_OF_SIGN[sign] for sign in SIGNS)]
        words = "|".join(f"(?:{_joined(cues[kind], macros)})(?!\\w)()" for kind in KINDS)
        signs = "|".join(f"(?:{_joined(cues[sign], macros)})()" for sign in SIGNS)
        try:
            self._pattern = re.compile(f"(?<!\\w)(?:{words})|{signs}")
        except re.error as error:
            raise UsageError(f"a cue is not a pattern: {error}", where="cues") from error

    def find(self, text: str, start: int, end: int, hits: Sequence[Hit]) -> list[Cue]:
        """Return the cues of a sentence in order; a cue inside a term ("absent corpus callosum") is none."""
        found = []
        for match in self._pattern.finditer(text, start, end):
            kind = self._kinds[(match.lastindex or 1) - 1]
            first, last = match.span()
            if kind == "pseudo" or any(hit.start < last and first < hit.end for hit in hits):
                continue
            found.append(Cue(kind, first, last))
        return found


def _joined(patterns: Sequence[str], macros: Mapping[str, str]) -> str:
    joined = "|".join(patterns)
    for name, value in macros.items():
        joined = joined.replace(f"@{name}", value)
    joined = re.sub(r"(?<!\\)\((?!\?)", "(?:", joined)  # the pattern counts its own groups to name the kind
    return joined.replace(" *", r"\s*").replace(" ?", r"[\s-]*").replace(" ", r"[\s-]+")


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence with its terms and cues; offsets are those of the report."""

    text: str  # the whole report, lower case
    start: int
    end: int
    hits: Sequence[Hit]
    cues: Sequence[Cue]

    def judge(self, index: int, *, ignored: tuple[int, int] = (0, 0), lasting: bool = False) -> Judgement:
        """Decide on the term `hits[index]`.

        Parameters
        ----------
        ignored
            Where the attribute lies that chose the label: "prior" in "prior infarct" is an age, no history.
        lasting
            The label stays true once it was true: "status post craniotomy" is a craniotomy.
        """
        hit = self.hits[index]
        if (judged := self._template(index)) is not None:
            return judged
        found = self._cues_before(hit) | self._cues_after(index)
        history = found.get("history_before")
        if history and (lasting or (history.start < ignored[1] and ignored[0] < history.end)):
            del found["history_before"]
        if lasting:
            found.pop("treated_adjacent_after", None)
        for kind, state in _PRECEDENCE:
            if cue := found.get(kind):
                return Judgement(state, kind, cue)
        if self._is_alternative(index):
            return Judgement(LabelState.UNCERTAIN, "alternatives")
        return AFFIRMED

    def _cues_before(self, hit: Hit) -> dict[str, Cue]:
        found: dict[str, Cue] = {}
        # Where a new statement begins: denials before an earlier term do not reach across.
        started: int | None = None
        for cue in reversed(self.cues):
            if cue.end > hit.start:
                continue
            if cue.kind in _AFTER or cue.kind == "ends":
                break
            if cue.kind == "starts":
                if not re.search(r"\b(?:or|nor)\s+$", self.text[max(self.start, cue.start - 6) : cue.start]):
                    started = cue.start
            elif cue.kind == "predicate":
                started = cue.start
            elif cue.kind in _BEFORE:
                if started is not None and self._term_between(cue.end, started):
                    break
                if cue.kind in _DENIALS and _PLACE.search(self.text, cue.end, hit.start):
                    continue
                if cue.kind in _NARROW and not self._near(cue, hit):
                    continue
                found.setdefault(cue.kind, cue)
                if cue.kind == "uncertain_before" and not self.text.startswith("suggest", cue.start):
                    started = cue.start
        return found

    def _cues_after(self, index: int) -> dict[str, Cue]:
        hit = self.hits[index]
        found: dict[str, Cue] = {}
        for cue in self.cues:
            if cue.start < hit.end:
                continue
            if cue.kind in _ADJACENT_AFTER:
                if not self.text[hit.end : cue.start].strip(" -\n"):
                    return {cue.kind: cue}
            elif cue.kind in _AFTER:
                if not self._term_between(hit.end, cue.start) or not self._governed(hit):
                    found[cue.kind] = cue
                break
            elif cue.kind in ("ends", "predicate", "verbs") or cue.kind in _BEFORE:
                break
        return found

    def _near(self, cue: Cue, hit: Hit) -> bool:
        between = self.text[cue.end : hit.start]
        if len(between.split()) > _NARROW_REACH_WORDS or _CLAUSE.search(between):
            return False
        verbs = [verb for verb in self.cues if verb.kind == "verbs" and cue.end <= verb.start < hit.start]
        return not any(self._term_between(cue.end, verb.start) for verb in verbs)

    def _term_between(self, start: int, end: int) -> bool:
        return any(start <= hit.start and hit.end <= end for hit in self.hits)

    def _governed(self, hit: Hit) -> bool:
        """Whether the term already has its verb: "there is A, and B is absent" says nothing against A."""
        return any(cue.kind in ("verbs", "ends", "predicate") and cue.end <= hit.start for cue in self.cues)

    def _is_alternative(self, index: int) -> bool:
        hit = self.hits[index]
        labels = {candidate.label for candidate in hit.candidates}
        for other in self.hits[max(0, index - 1) : index + 2]:
            if other is hit or labels & {candidate.label for candidate in other.candidates}:
                continue
            first, second = (hit, other) if hit.start < other.start else (other, hit)
            if _OR.fullmatch(self.text, first.end, second.start):
                return True
        return False

    def _template(self, index: int) -> Judgement | None:
        """Judge a term that is the key of a "key: value" line by its value."""
        hit = self.hits[index]
        colon = self.text.find(":", hit.end, min(self.end, hit.end + 60))
        if colon < 0 or any(cue.kind in _BEFORE and cue.start < colon for cue in self.cues):
            return None
        key = self.text[hit.end : colon + 1]
        for other in self.hits[index + 1 :]:
            if other.end <= colon:
                key = key.replace(self.text[other.start : other.end], "", 1)
        if not _KEY_REST.fullmatch(key):
            return None
        value = colon + 1
        cue = Cue("template", colon, colon + 1)
        if _VALUE_NO.match(self.text, value, self.end) and not _VALUE_NO_CHANGE.match(self.text, value, self.end):
            return Judgement(LabelState.ABSENT, "template", cue)
        if _VALUE_DOUBT.match(self.text, value, self.end):
            return Judgement(LabelState.UNCERTAIN, "template", cue)
        if _VALUE_YES.match(self.text, value, self.end) or _VALUE_NO_CHANGE.match(self.text, value, self.end):
            return Judgement(LabelState.PRESENT, "template", cue)
        return Judgement(None, "template", cue)
