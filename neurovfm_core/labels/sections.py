"""Where a report says what: sections, and the sentences in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum


class Section(IntEnum):
    """Parts of a report; the greater one overrules the lesser."""

    NOT_COUNTED = 0
    FINDINGS = 1
    IMPRESSION = 2
    ADDENDUM = 3


@dataclass(frozen=True, slots=True)
class Span:
    """`text[start:end]` and the section it stands in."""

    start: int
    end: int
    section: Section


_HEADINGS = {
    Section.NOT_COUNTED: (
        r"exam(?:ination)?(?: type| date)?|procedures?|study|technique|protocol"
        r"|comparisons?(?: (?:exam\w*|stud(?:y|ies)))?|indications?(?: for \w+)?"
        r"|history of present illness|hpi"
        r"|(?:(?:clinical|patient|medical|surgical|brief) )?"
        r"(?:history|information|indications?|details|data|statement|question|context|notes?)"
        r"|reason(?: for (?:the )?(?:exam\w*|study|visit|test|request|referral|scan))?"
        r"|contrast|(?:radiation )?dose|prior(?: stud(?:y|ies))?|recommendations?|limitations?"
        r"|(?:electronically )?signed(?: by)?|dictated by|communication|notification|critical results?"
        r"|accession|order"
    ),
    Section.FINDINGS: (r"findings?|report|interpretation|discussion|observations?|description|body|results?|narrative"),
    Section.IMPRESSION: r"impressions?|conclusions?|opinion|assessment|summary|diagnos[ei]s",
    Section.ADDENDUM: r"addend(?:um|a)|amend(?:ed report|ment)|corrected report|correction",
}
_NAMES = "|".join(f"(?P<s{int(section)}>{names})" for section, names in _HEADINGS.items())
_LEAD = r"(?:(?:ct|mri?|mra|cta|head|brain|final|preliminary|overall|imaging|radiology|radiological) +){0,3}"
# A heading opens the text, a line or (in dictated run-ons) a sentence, and ends in a colon or fills its line.
_HEADING = re.compile(
    rf"(?:^|(?<=[\n.,;!?]))[ ,*#]*{_LEAD}(?:{_NAMES}) *(?:\([^()\n]{{0,40}}\)|#?\d+)? *\**"
    r"(?::|(?=\n|$)(?<=\w))",
    re.MULTILINE,
)
_BLANK_LINE = re.compile(r"\S[^\n]*\n\s*\n")
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:dr|mr|mrs|prof|vs|e\.g|i\.e|approx|cf|fig|ca|resp|incl|max|min|st)$")
_BREAK = re.compile(r"[.!?]+(?=[\s,)]|$)|;|\n")
_OPENS_LINE = re.compile(r"[ ]*(?:\n|[-*•o>] |\d{1,2}[.)]|\[|[a-z][\w /&(),-]{0,50}:)")

SHORT_LINE = 30
"""A line shorter than this was not wrapped by an editor, so its end ends the sentence."""

_SAME_LENGTH = str.maketrans("\t\r\f\v\u00a0\u2013\u2014\u2212\u2019\u2018\u201c\u201d", "     ---''\"\"")


def normalized(text: str) -> str:
    """Return the text in lower case, plain dashes, quotes and blanks, every character at its old place."""
    lower = text.lower()
    if len(lower) != len(text):  # a few letters, such as a dotted capital I, grow in lower case
        lower = "".join(low if len(low := letter.lower()) == 1 else letter for letter in text)
    return lower.translate(_SAME_LENGTH)


def sentences(text: str) -> Iterator[Span]:
    """Yield the sentences of a normalized report that count, in order.

    Technique, comparison, indication and history are left out. A part that is left out ends at the next
    heading or at its first blank line, so that an unheaded body after "History: fall." is read.
    """
    width = max(map(len, text.split("\n")))
    for start, end, section in _sections(text):
        if section is Section.NOT_COUNTED:
            continue
        begin = start
        for match in _BREAK.finditer(text, start, end):
            if match.group() == "\n":
                if not _line_ends_sentence(text, begin, match.start(), end, width):
                    continue
            elif match.group() == "." and _ABBREVIATION.search(text, max(begin, match.start() - 8), match.start()):
                continue
            if text[begin : match.end()].strip(" \n.,;:"):
                yield Span(begin, match.end(), section)
            begin = match.end()
        if text[begin:end].strip(" \n.,;:"):
            yield Span(begin, end, section)


def _sections(text: str) -> Iterator[tuple[int, int, Section]]:
    start, section = 0, Section.FINDINGS
    for match in _HEADING.finditer(text):
        yield from _closed(text, start, match.start(), section)
        name = match.lastgroup or "s1"
        start, section = match.end(), Section(int(name[1:]))
    yield from _closed(text, start, len(text), section)


def _closed(text: str, start: int, end: int, section: Section) -> Iterator[tuple[int, int, Section]]:
    if section is Section.NOT_COUNTED and (blank := _BLANK_LINE.search(text, start, end)):
        start, section = blank.end(), Section.FINDINGS
    if start < end:
        yield start, end, section


def _line_ends_sentence(text: str, begin: int, newline: int, end: int, width: int) -> bool:
    line = text[text.rfind("\n", begin, newline) + 1 : newline].rstrip()
    if len(line) < SHORT_LINE or _OPENS_LINE.match(text, newline + 1, end):
        return True
    # An editor wraps where the next word no longer fits into the longest line.
    next_word = text[newline + 1 : newline + 1 + width].split(maxsplit=1)
    return bool(next_word) and len(line) + 1 + len(next_word[0]) <= width
