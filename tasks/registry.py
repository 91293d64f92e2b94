"""The chain: every stage, in order. A new stage is registered here and nowhere else."""

import difflib
from collections.abc import Sequence

from neurovfm_core.errors import UsageError
from tasks import analyze, convert, export, label, preprocess, pretrain, probe, shard
from tasks.stage import Stage

STAGES: tuple[Stage, ...] = (
    export.STAGE,
    convert.STAGE,
    preprocess.STAGE,
    shard.STAGE,
    label.STAGE,
    pretrain.STAGE,
    probe.STAGE,
    analyze.STAGE,
)


def stage_named(name: str) -> Stage:
    """Return a stage by name.

    Raises
    ------
    UsageError
        If there is none; the error names the nearest.
    """
    for stage in STAGES:
        if stage.name == name:
            return stage
    names = [stage.name for stage in STAGES]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else "the stages are " + ", ".join(names)
    raise UsageError(f"there is no stage {name!r}", hint=hint)


def stages_named(names: Sequence[str]) -> tuple[Stage, ...]:
    """Return the named stages in the order of the chain; all of them when none is named."""
    wanted = [stage_named(name) for name in names]
    return tuple(stage for stage in STAGES if not wanted or stage in wanted)


def between(first: str | None, last: str | None) -> tuple[Stage, ...]:
    """Return the part of the chain from one stage to another, both included."""
    names = [stage.name for stage in STAGES]
    start = names.index(stage_named(first).name) if first else 0
    end = names.index(stage_named(last).name) if last else len(names) - 1
    if start > end:
        raise UsageError(f"{first} comes after {last} in the chain", hint="the order is " + " → ".join(names))
    return STAGES[start : end + 1]
