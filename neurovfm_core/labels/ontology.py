"""What the labels mean and how reports say them: three TOML files, extended by a site's own."""

import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from neurovfm_core.errors import UsageError
from neurovfm_core.labels.lexicon import Attributes, Lexicon, TermGroup
from neurovfm_core.vocabulary import Modality

PACKAGED = ("ontology.toml", "lexicon.toml", "cues.toml")


@dataclass(frozen=True, slots=True)
class LabelEntry:
    """The meaning of one label."""

    name: str
    category: str
    urgency: str  # urgent, routine or none
    definition: str
    includes: str = ""
    excludes: str = ""
    implies: tuple[str, ...] = ()


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")
    category: str
    urgency: str = Field(pattern="^(urgent|routine|none)$")
    definition: str
    includes: str = ""
    excludes: str = ""
    implies: tuple[str, ...] = ()


class _Data(BaseModel):
    """All tables of the files together; a wrong key is refused."""

    model_config = ConfigDict(extra="forbid")
    order: dict[str, tuple[str, ...]]
    label: dict[str, _Entry]
    spelling: dict[str, str]
    attributes: dict[str, tuple[str, ...]]
    sets: dict[str, tuple[str, ...]]
    terms: dict[str, dict[str, TermGroup]]
    cues: dict[str, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Ontology:
    """The labels of both modalities, their meaning, their phrases, and the cues of the rule engine.

    Build it with `load`. `version` is the first 12 hex digits of the sha256 of all files read.
    """

    version: str
    data: _Data

    @classmethod
    def load(cls, path: Path | None = None) -> "Ontology":
        """Read the packaged ontology and, on top of it, a site's TOML file.

        A site file has any of the tables of the packaged files. Lists are appended to the packaged
        lists, other values replace them; the labels and their order are those of the method and stay.

        Raises
        ------
        UsageError
            The file is missing, is not TOML, has an unknown key, names an unknown label, or holds a phrase
            that is not a pattern.
        """
        digest = hashlib.sha256()
        folder = files("neurovfm_core.labels")
        merged: dict[str, Any] = {}
        for name in PACKAGED:
            raw = (folder / name).read_bytes()
            digest.update(raw)
            _merge(merged, _tables(name, tomllib.loads(raw.decode())))
        names = set(merged["label"])
        if path is not None:
            raw = _read(path)
            digest.update(raw)
            try:
                site = tomllib.loads(raw.decode())
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise UsageError(f"the ontology is not a TOML file: {error}", where=path.name) from error
            if "order" in site:
                raise UsageError("a site's ontology cannot change the order of the labels", where=path.name)
            for table in ("label", "mr", "ct"):
                if unknown := sorted(set(site.get(table, ())) - names):
                    raise UsageError(
                        f"unknown labels: {', '.join(unknown)}",
                        where=f"{path.name}, [{table}]",
                        hint="label names are those of Ontology.labels",
                    )
            _merge(merged, _tables("site", site))
        where = path.name if path else "packaged ontology"
        try:
            ontology = cls(digest.hexdigest()[:12], _Data.model_validate(merged))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"the ontology has a wrong value: {first['msg']}", where=f"{where}, {place}") from error
        if path is not None:
            for modality in Modality:
                ontology.lexicon(modality)  # a phrase that is not a pattern is refused now, not in the run
        return ontology

    def labels(self, modality: Modality | str) -> tuple[str, ...]:
        """Return the label names of a modality in the order of a head's outputs: 74 for MR, 82 for CT."""
        return self.data.order[Modality(modality).value]

    def entry(self, label: str, modality: Modality | str) -> LabelEntry:
        """Return the meaning of a label; its `implies` holds only labels of this modality."""
        if label not in self._index[Modality(modality)]:
            raise UsageError(f"{label} is not a label of {Modality(modality).value}", hint="see Ontology.labels")
        entry = self.data.label[label]
        implies = tuple(name for name in entry.implies if name in self._index[Modality(modality)])
        return LabelEntry(
            label, entry.category, entry.urgency, entry.definition, entry.includes, entry.excludes, implies
        )

    def implied(self, label: str, modality: Modality | str) -> tuple[str, ...]:
        """Return every label that is true when this one is, itself not included, nearest first."""
        return self._closure[Modality(modality)][label]

    def lexicon(self, modality: Modality | str) -> Lexicon:
        """Return the compiled phrases of a modality (built once)."""
        return self._lexicons[Modality(modality)]

    @cached_property
    def _index(self) -> dict[Modality, frozenset[str]]:
        return {modality: frozenset(self.labels(modality)) for modality in Modality}

    @cached_property
    def _closure(self) -> dict[Modality, dict[str, tuple[str, ...]]]:
        closure: dict[Modality, dict[str, tuple[str, ...]]] = {}
        for modality in Modality:
            own = self._index[modality]
            closure[modality] = {
                label: tuple(name for name in _ancestors(label, self.data.label) if name in own) for label in own
            }
        return closure

    @cached_property
    def _lexicons(self) -> Mapping[Modality, Lexicon]:
        attributes = Attributes(self.data.attributes, self.data.spelling)
        return {modality: Lexicon(self._groups(modality), attributes, self.data.spelling) for modality in Modality}

    def _groups(self, modality: Modality) -> Iterator[tuple[str, TermGroup]]:
        for label in self.labels(modality):
            for table in ("label", modality.value.lower()):
                if group := self.data.terms[table].get(label):
                    yield label, group.expanded(self.data.sets)


def _ancestors(label: str, entries: Mapping[str, _Entry]) -> list[str]:
    found: list[str] = []
    queue = list(entries[label].implies)
    while queue:
        name = queue.pop(0)
        if name != label and name not in found:
            found.append(name)
            queue.extend(entries[name].implies)
    return found


_MEANING = frozenset(_Entry.model_fields)


def _tables(name: str, read: Mapping[str, Any]) -> dict[str, Any]:
    """Bring one file into the layout of `_Data`: meaning and phrases share [label.*] in a site's file."""
    tables: dict[str, Any] = {
        key: value for key, value in read.items() if key not in ("label", "mr", "ct") and name != "cues.toml"
    }
    if name == "cues.toml":
        return {"cues": dict(read)}
    meaning: dict[str, Any] = {}
    phrases: dict[str, Any] = {"label": {}, "mr": read.get("mr", {}), "ct": read.get("ct", {})}
    for label, fields in read.get("label", {}).items():
        meaning[label] = {key: value for key, value in fields.items() if key in _MEANING}
        if rest := {key: value for key, value in fields.items() if key not in _MEANING}:
            phrases["label"][label] = rest
    return {**tables, "label": meaning, "terms": phrases}


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value)
        elif isinstance(old, list) and isinstance(value, list):
            into[key] = old + value
        else:
            into[key] = value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError("the ontology file cannot be read", where=path.name) from error
