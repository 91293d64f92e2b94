"""What a run was made with: code, libraries, host; and whether the code has moved since."""

import ast
import importlib.util
import platform
import socket
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from neurovfm_core import __version__
from neurovfm_core.params import fingerprint

LIBRARIES = (
    "torch",
    "numpy",
    "scipy",
    "pydicom",
    "nibabel",
    "SimpleITK",
    "pyarrow",
    "deltalake",
    "scikit-learn",
    "prefect",
)
OUR_PACKAGES = ("tasks", "manifests", "neurovfm_core")


@cache
def environment() -> dict[str, object]:
    """Return versions of the code and of the libraries that touch data, and the host."""
    return {
        "package_version": __version__,
        "git": _git(),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "host": socket.gethostname(),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _git() -> str:
    """Return `<commit>` or `<commit>-dirty`; empty when installed without a repository."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip()


@cache
def code_fingerprint(module: str) -> str:
    """Return the sha256 over the syntax trees of a stage's module and what it imports of ours.

    Comments, docstrings and layout do not count. A moved fingerprint with an
    equal semantic version is a reason to look, never to recompute by itself.
    """
    parts = [f"{name}\n{_bare_tree(path)}" for name, path in sorted(_reachable(module).items())]
    return fingerprint(*parts)


def _reachable(module: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or not name.startswith(OUR_PACKAGES):
            continue
        path = _path_of(name)
        if path is None:
            continue
        found[name] = path
        waiting += _imports(path)
    # The contract itself is not the method of any stage: it must not make all of them suspect.
    return {name: path for name, path in found.items() if name.startswith("neurovfm_core.") or name == module}


def _path_of(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def _bare_tree(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
