"""From which versions a version was made, back to the first stage."""

from typing import Any

from manifests.errors import DamagedManifest, UnknownVersion
from manifests.store import ManifestStore, Pin


def lineage(store: ManifestStore, pin: Pin) -> dict[str, Any]:
    """Follow ``provenance["inputs"]`` (stage -> pin) from a version back to the first stage.

    Returns
    -------
    A tree of plain JSON: ``stage``, ``version`` and ``commit_sha256`` of the
    pin, its ``provenance``, its ``inputs`` (stage -> the same again), and
    ``trouble``: empty, or why the history behind this pin cannot be followed
    (the version is gone, or the manifest was rewound).
    """
    manifest = store.manifest(pin.stage)
    try:
        manifest.check(pin)
    except (UnknownVersion, DamagedManifest) as error:
        return {**pin.to_dict(), "provenance": {}, "inputs": {}, "trouble": error.what}
    provenance = manifest.provenance(pin.version) or {}
    inputs = {stage: Pin.from_dict(fields) for stage, fields in sorted(provenance.get("inputs", {}).items())}
    return {
        **pin.to_dict(),
        "provenance": provenance,
        "inputs": {stage: lineage(store, upstream) for stage, upstream in inputs.items()},
        "trouble": "",
    }


def mermaid(tree: dict[str, Any]) -> str:
    """Return a lineage as a Mermaid flowchart, inputs on the left; each version appears once."""
    nodes: dict[str, str] = {}
    edges: dict[str, None] = {}
    _draw(tree, nodes, edges)
    return "\n".join(["flowchart LR", *(f"    {line}" for line in (*nodes.values(), *edges))])


def _draw(tree: dict[str, Any], nodes: dict[str, str], edges: dict[str, None]) -> str:
    name = f"{tree['stage']}_{tree['version']}_{tree['commit_sha256'][:8]}"
    trouble = " (history lost)" if tree["trouble"] else ""
    nodes.setdefault(name, f'{name}["{tree["stage"]} v{tree["version"]}{trouble}"]')
    for upstream in tree["inputs"].values():
        edges[f"{_draw(upstream, nodes, edges)} --> {name}"] = None
    return name
