"""Time a nightly plan and commit against a manifest of 5.24 M rows.

    python tests/benchmarks/manifest_scale.py [--rows 5239579] [--folder /tmp/bench]

Prints one line per measurement. Every measurement runs in a process of its own,
so that its peak memory is its own. Takes about two minutes and 3 GB of disk.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from manifests.freshness import classify
from manifests.store import ManifestStore

PAPER_NUM_VOLUMES = 5_239_579
NUM_NEW = 2_000
NUM_CHANGED = 100
CHUNK_ROWS = 500_000


def fixed_texts(letters: np.ndarray, prefix: str = "") -> pa.Array:
    """Return a string array from the rows of an (N, L) uint8 matrix of ASCII codes."""
    head = np.frombuffer(prefix.encode(), np.uint8)
    matrix = np.hstack([np.broadcast_to(head, (len(letters), len(head))), letters])
    offsets = np.arange(len(matrix) + 1, dtype=np.int32) * matrix.shape[1]
    return pa.StringArray.from_buffers(len(matrix), pa.py_buffer(offsets), pa.py_buffer(matrix.tobytes()))


def digests(rng: np.random.Generator, num: int, length: int = 64, prefix: str = "") -> pa.Array:
    alphabet = np.frombuffer(b"0123456789abcdef", np.uint8)
    return fixed_texts(alphabet[rng.integers(0, 16, (num, length), dtype=np.uint8)], prefix)


def generated_rows(start: int, stop: int, changed: int = 0) -> pa.Table:
    """Rows `start` to `stop` of a made-up preprocess manifest; the first `changed` have another input."""
    num = stop - start
    ids = digests(np.random.default_rng([1, start]), num, 16, "ser_")
    inputs = digests(np.random.default_rng([2, start]), num)
    if changed:
        inputs = pa.concat_arrays([digests(np.random.default_rng([3, start]), changed), inputs.slice(changed)])
    rng = np.random.default_rng([4, start])
    kind = rng.choice(3, num, p=[0.93, 0.06, 0.01])
    finished = pa.scalar(datetime(2026, 1, 1, tzinfo=UTC), pa.timestamp("us", "UTC"))
    return pa.table(
        {
            "item_id": ids,
            "source_id": ids,
            "input_fingerprint": inputs,
            "params_fingerprint": pa.repeat("a" * 64, num),
            "semantic_version": pa.repeat(pa.scalar(1, pa.int32()), num),
            "status": pa.array(np.array(["ok", "excluded", "failed"])[kind]),
            "reason": pa.array(np.array(["", "too_small", "crash"])[kind]),
            "sha256": digests(rng, num),
            "bytes": pa.array(rng.integers(10**5, 10**7, num)),
            "run_id": pa.repeat("run_benchmark", num),
            "finished_at": pa.repeat(finished, num),
            "seconds": pa.array(rng.random(num)),
            "study_id": digests(rng, num, 16, "stu_"),
            "modality": pa.array(np.array(["MR", "CT"])[rng.integers(0, 2, num)]),
        }
    )


def generate(store: ManifestStore, num_rows: int) -> None:
    started = time.perf_counter()
    for start in range(0, num_rows, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, num_rows)
        rows = generated_rows(start, stop)
        store.manifest("preprocess").append(rows, {"run_id": "generated"})
        # Upstream is last night's state with a few series resent and some new ones.
        store.manifest("convert").append(
            generated_rows(start, stop, NUM_CHANGED if not start else 0), {"run_id": "generated"}
        )
    store.manifest("convert").append(generated_rows(10**9, 10**9 + NUM_NEW), {"run_id": "generated"})
    print(f"generated rows={num_rows} tables=2 seconds={time.perf_counter() - started:.1f}")


def plan(store: ManifestStore, params: str) -> None:
    started = time.perf_counter()
    columns = ["item_id", "input_fingerprint", "study_id"]
    inputs = store.manifest("convert").current(columns=columns, ordered=False)
    read_s = time.perf_counter() - started
    work = classify(
        inputs,
        store.manifest("preprocess"),
        params_fingerprint=params,
        semantic_version=1,
        retry_reasons=frozenset({"timeout"}),
    )
    seconds = time.perf_counter() - started
    print(
        f"plan inputs={inputs.num_rows} todo={work.why_counts} fresh={work.fresh} "
        f"quarantined={work.quarantined} gone={len(work.gone)} read_s={read_s:.1f} seconds={seconds:.1f}"
    )


def commit(store: ManifestStore) -> None:
    manifest = store.manifest("preprocess")
    before = manifest.pin()
    rows = generated_rows(10**9, 10**9 + NUM_NEW)
    started = time.perf_counter()
    manifest.append(rows, {"run_id": "nightly"})
    commit_s = time.perf_counter() - started
    started = time.perf_counter()
    changed = manifest.changed_since(before)
    print(f"commit rows={NUM_NEW} seconds={commit_s:.3f}")
    print(f"changed_since rows={changed.num_rows} seconds={time.perf_counter() - started:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=PAPER_NUM_VOLUMES)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", choices=("generate", "plan", "replan", "commit"))
    options = parser.parse_args()
    if options.only:
        store = ManifestStore(options.folder)
        {
            "generate": lambda: generate(store, options.rows),
            "plan": lambda: plan(store, "a" * 64),
            "replan": lambda: plan(store, "b" * 64),
            "commit": lambda: commit(store),
        }[options.only]()
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"  cpu_s={time.process_time():.1f} peak_gb={peak_gb:.2f}")
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        for step in ("generate", "plan", "replan", "commit"):
            arguments = ["--only", step, "--folder", str(folder), "--rows", str(options.rows)]
            subprocess.run([sys.executable, __file__, *arguments], check=True)


if __name__ == "__main__":
    main()
