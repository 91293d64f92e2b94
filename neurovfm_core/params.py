"""The base of every settings model."""

import hashlib
import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0, lt=1)]


class Params(BaseModel):
    """Frozen and strict: a wrong key or type is refused before anything starts.

    The docstring under a field is its help text, its label in the UI form and
    its line in the reference.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


def canonical_json(value: object) -> str:
    """Return the one JSON text of a value: keys sorted, no blanks, floats by `repr`."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(*parts: str | int | bytes) -> str:
    """Return the sha256 (64 hex digits) of the parts, each with its length in front.

    Without the lengths ("ab", "c") and ("a", "bc") would be the same.
    """
    digest = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()
