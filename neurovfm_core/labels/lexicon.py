"""From phrases to patterns, and from a sentence to the labels it mentions."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from neurovfm_core.errors import UsageError

Unspecified = Literal["present", "uncertain", "none"]
Kind = Literal["term", "only_present", "only_absent", "normal"]

GUARD_REACH = 60
"""Characters beside a term in which a guard looks."""


class TermGroup(BaseModel):
    """Phrases of one label and the conditions under which they count; see lexicon.toml for the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    terms: tuple[str, ...] = ()
    only_present: tuple[str, ...] = ()
    only_absent: tuple[str, ...] = ()
    normal: tuple[str, ...] = ()
    when: tuple[str, ...] = ()
    unspecified: Unspecified = "present"
    report_wide: bool = False
    lasting: bool = False
    not_before: tuple[str, ...] = ()
    not_after: tuple[str, ...] = ()

    def expanded(self, sets: Mapping[str, Sequence[str]]) -> "TermGroup":
        """Return the group with every `@name` replaced by the phrases of that set."""

        def phrases(field: tuple[str, ...]) -> tuple[str, ...]:
            found: list[str] = []
            for phrase in field:
                if phrase.startswith("@") and phrase[1:] not in sets:
                    raise UsageError(f"the lexicon has no set {phrase[1:]}", where="[sets]")
                found.extend(sets[phrase[1:]] if phrase.startswith("@") else (phrase,))
            return tuple(found)

        return self.model_copy(
            update={name: phrases(getattr(self, name)) for name in ("terms", "only_present", "only_absent", "normal")}
        )


def phrase_pattern(phrase: str, spelling: Mapping[str, str]) -> str:
    """Translate a phrase of lexicon.toml (its opening comment has the rules) into a regular expression.

    Examples
    --------
    >>> pattern = phrase_pattern("intra_?cranial hemorrhage", {"hemorrh": "ha?emorrh"})
    >>> bool(re.fullmatch(pattern, "intra-cranial haemorrhages"))
    True
    """
    head, tilde, tail = phrase.partition(" ~ ")
    if tilde:
        noun = phrase_pattern(tail, spelling)
        first = _translated(head, spelling)
        # In "subdural, subarachnoid and intraventricular hemorrhage" the noun comes once, at the end.
        listed = rf"(?=-?\s*(?:,|/|&|\b(?:and|or|nor)\b)[^.;:]{{0,60}}?\b(?:{noun})\b)"
        return rf"{first}(?:[\s-]+{noun}|{listed})"
    if phrase.endswith("y"):
        return _translated(phrase[:-1], spelling) + "(?:y|ies)"
    if phrase.endswith("sis"):
        return _translated(phrase[:-3], spelling) + "s[ei]s"
    return _translated(phrase, spelling) + "(?:e?s)?"


def _translated(phrase: str, spelling: Mapping[str, str]) -> str:
    for plain, pattern in spelling.items():
        phrase = phrase.replace(plain, pattern)
    phrase = re.sub(r"(?<!\\)\((?!\?)", "(?:", phrase)
    phrase = phrase.replace(" .. ", r"(?:e?s)?(?:\s+[\w'/-]+){0,6}?\s+")
    return phrase.replace("_?", r"[\s-]*").replace("_", r"[\s-]*").replace(" ", r"[\s-]+")


class Attributes:
    """Words beside a term that decide between labels: acute or chronic, displaced or not."""

    def __init__(self, phrases: Mapping[str, Sequence[str]], spelling: Mapping[str, str]) -> None:
        self.names = frozenset(phrases)
        parts = []
        # "nondisplaced" must be tried before "displaced", so the longer phrase comes first.
        pairs = sorted(((len(text), name, text) for name, texts in phrases.items() for text in texts), reverse=True)
        self._name_of: dict[int, str] = {}
        for index, (_, name, text) in enumerate(pairs, start=1):
            parts.append(phrase_pattern(text, spelling) + r"(?!\w)()")
            self._name_of[index] = name
        self._pattern = _compiled(r"(?<!\w)(?:" + "|".join(parts) + ")")

    def find(self, text: str, start: int = 0, end: int | None = None) -> list["FoundAttribute"]:
        """Return every attribute word in `text[start:end]`, in order."""
        return [
            FoundAttribute(self._name_of[match.lastindex or 0], match.start(), match.end())
            for match in self._pattern.finditer(text, start, len(text) if end is None else end)
        ]


@dataclass(frozen=True, slots=True)
class FoundAttribute:
    """An attribute word at its place."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """One label that a term may stand for."""

    label: str
    kind: Kind
    group: TermGroup


@dataclass(frozen=True, slots=True)
class Hit:
    """A stretch of text that mentions one or more labels."""

    start: int
    end: int
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    """All phrases of one candidate, and the words beside them that make them something else."""

    pattern: re.Pattern[str]
    candidate: Candidate
    before: re.Pattern[str] | None
    after: re.Pattern[str] | None

    def is_guarded(self, text: str, begin: int, stop: int, end: int) -> bool:
        if self.before and self.before.search(text, max(0, begin - GUARD_REACH), begin):
            return True
        return bool(self.after and self.after.match(text, stop, min(end, stop + GUARD_REACH)))


class Lexicon:
    """All phrases of one modality. Everything expects lower-case text."""

    def __init__(
        self, groups: Iterable[tuple[str, TermGroup]], attributes: Attributes, spelling: Mapping[str, str]
    ) -> None:
        self.attributes = attributes
        self._spelling = spelling
        self._rows: list[_Row] = []
        everything: set[str] = set()
        for label, group in groups:
            if unknown := sorted(set(group.when) - attributes.names):
                raise UsageError(f"unknown attribute {unknown[0]}", where=f"lexicon, {label}")
            before = self._guard(group.not_before, "(?<![\\w])(?:{})[\\s-]+$")
            after = self._guard(group.not_after, "[\\s,-]*(?:{})(?!\\w)")
            kinds: tuple[tuple[Kind, tuple[str, ...]], ...] = (
                ("term", group.terms),
                ("only_present", group.only_present),
                ("only_absent", group.only_absent),
                ("normal", group.normal),
            )
            for kind, phrases in kinds:
                if not phrases:
                    continue
                patterns = [phrase_pattern(p, spelling) for p in sorted(phrases, key=_weight, reverse=True)]
                everything.update(patterns)
                pattern = _compiled(f"(?:{'|'.join(patterns)})(?!\\w)")
                self._rows.append(_Row(pattern, Candidate(label, kind, group), before, after))
        # A term inside "non-hemorrhagic" or "nonhemorrhagic" is no mention.
        self._any = _compiled(rf"(?<!\w)(?<!\bnon[\s-])(?:{'|'.join(sorted(everything))})(?!\w)")

    def find(self, text: str, start: int, end: int) -> list[Hit]:
        """Return the terms in `text[start:end]`, none overlapping; of those that begin together the longest."""
        hits: list[Hit] = []
        position = start
        while match := self._any.search(text, position, end):
            begin = match.start()
            stop, candidates = self._longest(text, begin, end)
            if candidates:
                hits.append(Hit(begin, stop, tuple(candidates)))
            # A guard that rejects "brain mass" must not hide the "mass effect" that begins inside it.
            position = stop if candidates else begin + 1
        return hits

    def _longest(self, text: str, begin: int, end: int) -> tuple[int, list[Candidate]]:
        stop = begin
        found: list[_Row] = []
        for row in self._rows:
            match = row.pattern.match(text, begin, end)
            if match is None or match.end() < stop:
                continue
            if match.end() > stop:
                stop, found = match.end(), []
            found.append(row)
        return stop, [row.candidate for row in found if not row.is_guarded(text, begin, stop, end)]

    def _guard(self, words: Sequence[str], template: str) -> re.Pattern[str] | None:
        if not words:
            return None
        return _compiled(template.format("|".join(phrase_pattern(word, self._spelling) for word in words)))


def _weight(phrase: str) -> int:
    return len(re.sub(r"\([^()]*\)[?*]", "", phrase))


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"a phrase of the lexicon is not a pattern: {error}", where="lexicon") from error
