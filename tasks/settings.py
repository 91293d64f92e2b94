"""`site.toml`, the only configuration file: composed here, defined beside the code that reads it."""

import difflib
import tomllib
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from neurovfm_core.deid.export import ExportParams
from neurovfm_core.dicom import ConvertParams
from neurovfm_core.errors import UsageError
from neurovfm_core.jepa.settings import PretrainParams
from neurovfm_core.labels import LabelParams
from neurovfm_core.params import Params
from neurovfm_core.probing.settings import ProbeParams
from neurovfm_core.reporting.settings import AnalyzeParams
from neurovfm_core.shards import ShardParams
from neurovfm_core.volumes import PreprocessParams

PRESETS = ("demo", "hospital", "paper")
Preset = Literal["demo", "hospital", "paper"]


class SourceParams(Params):
    """Where studies and reports come from."""

    url: str
    """Images: `folder:PATH`, a tree of DICOM files."""
    warehouse: str | None = None
    """Cohort and reports: an SQLAlchemy URL such as `sqlite:////data/warehouse.sqlite`. Without one,
    every CT and MR series of the source is taken and there are no reports to label."""


class RunParams(Params):
    """How stages run on this machine. Changing these never makes a result stale."""

    workers: int = Field(default=0, ge=0)
    """Worker processes for per-item stages; 0 means one per processor."""
    group_seconds: float = Field(default=60.0, gt=0)
    """Work between two commits of a manifest, in seconds; a kill loses at most this much."""
    failure_tolerance: float = Field(default=0.05, ge=0, le=1)
    """Share of a run's items that may fail before it stops with exit code 1 (never below 20 items)."""
    item_timeout_s: float = Field(default=900.0, gt=0)
    """Time limit for one item; past it the item becomes a `failed` row and the run goes on."""
    worker_memory_gb: float = Field(default=8.0, gt=0)
    """Address space limit of one worker process, in GiB."""
    min_free_gb: float = Field(default=1.0, ge=0)
    """Stop before a group when the workspace's disk has less than this free, in GiB."""


class Site(Params):
    """Every setting of one workspace, a section per stage."""

    source: SourceParams
    run: RunParams = RunParams()
    export: ExportParams = ExportParams()
    convert: ConvertParams = ConvertParams()
    preprocess: PreprocessParams = PreprocessParams()
    shard: ShardParams = ShardParams()
    label: LabelParams = LabelParams()
    pretrain: PretrainParams = PretrainParams()
    probe: ProbeParams = ProbeParams()
    analyze: AnalyzeParams = AnalyzeParams()


def load_site(path: Path) -> Site:
    """Read and check `site.toml`.

    Raises
    ------
    UsageError
        If the file is missing or is not TOML, or a key or value is wrong;
        the error names the line and, for a misspelt key, the nearest right one.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except FileNotFoundError:
        raise UsageError(
            "there is no site.toml here, so this is not a workspace",
            where=str(path.parent),
            hint="neurovfm init WORKSPACE --source folder:PATH, or name a workspace with --workspace",
        ) from None
    except UnicodeDecodeError:
        raise UsageError("site.toml is not UTF-8 text", where=str(path)) from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"site.toml is not valid TOML: {error}", where=str(path)) from None
    try:
        return Site.model_validate(values)
    except ValidationError as error:
        raise _usage_error(error, path, text) from None


def preset_text(preset: Preset, source: str, warehouse: str | None) -> str:
    """Return the text of a new `site.toml`."""
    template = resources.files("tasks").joinpath("presets", f"{preset}.toml").read_text(encoding="utf-8")
    lines = [f"url = {_toml_string(source)}"]
    if warehouse:
        lines.append(f"warehouse = {_toml_string(warehouse)}")
    return template.replace("[source]\n", "[source]\n" + "\n".join(lines) + "\n", 1)


def explain(section: str | None = None) -> list[dict[str, str]]:
    """List every setting: section, key, type, default and help text."""
    rows = []
    for name, field in Site.model_fields.items():
        model = field.annotation
        if section not in (None, name) or not (isinstance(model, type) and issubclass(model, Params)):
            continue
        rows += _explain_model(name, model)
    return rows


def _explain_model(prefix: str, model: type[Params]) -> list[dict[str, str]]:
    rows = []
    for key, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Params):
            rows += _explain_model(f"{prefix}.{key}", kind)
            continue
        default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
        name = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
        help_text = " ".join((field.description or "").split())
        rows.append({"section": prefix, "key": key, "type": name, "default": default, "help": help_text})
    return rows


def _toml_string(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _usage_error(error: ValidationError, path: Path, text: str) -> UsageError:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    line = _line_of(text, location)
    where = f"{path}, line {line}" if line else str(path)
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _keys_at(location[:-1]), n=1)
        hint = f"did you mean {near[0]}?" if near else "neurovfm config explain lists every setting"
        return UsageError(f"unknown setting {key}", where=where, hint=hint)
    hint = f"neurovfm config explain {location[0]}" if location else ""
    if first["type"] == "missing":
        return UsageError(f"the setting {key} is required", where=where, hint=hint)
    return UsageError(f"{key} is {first['input']!r}: {first['msg']}", where=where, hint=hint)


def _keys_at(location: list[str]) -> list[str]:
    model: object = Site
    for part in location:
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, Params) else None
        model = field.annotation if field else None
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, Params) else []


def _line_of(text: str, location: list[str]) -> int | None:
    """Find the line of a dotted key; tomllib keeps no positions."""
    section: list[str] = []
    best = None
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if line.startswith("["):
            section = line.strip("[]").split(".")
            if section == location[: len(section)]:
                best = number
        elif "=" in line and not line.startswith("#"):
            key = [*section, *line.split("=", 1)[0].strip().strip('"').split(".")]
            if key == location[: len(key)]:
                return number
    return best
