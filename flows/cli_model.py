"""Commands that use a trained encoder without a workspace: embed."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.cli import EXIT_FAILED, EXIT_OK, JsonOption, app


@app.command()
def embed(
    paths: Annotated[list[Path], typer.Argument(help="NIfTI files, DICOM files or folders of them.")],
    encoder: Annotated[Path, typer.Option(help="Folder of an encoder: encoders/... of a workspace.")],
    out: Annotated[Path, typer.Option(help="Folder for one .npz per volume.")] = Path("embeddings"),
    preset: Annotated[str, typer.Option(help="Preprocessing: paper or official.")] = "paper",
    modality: Annotated[str | None, typer.Option(help="CT or MR, for NIfTI files without a sidecar.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn volumes into features with a trained encoder; needs no workspace.

    Every .npz holds `mean` (D,), `tokens` (N, D) float16 and `coords` (N, 3). What cannot be
    used is listed with its reason; exit code 1 if nothing could be embedded.

      neurovfm embed scan.nii.gz --encoder ws/encoders/main-1a2b3c4d --modality MR

      neurovfm embed /data/dicom/study1 --encoder ws/encoders/main-1a2b3c4d --json
    """
    from tasks.embed import embed_paths

    rows = embed_paths(paths, encoder, out, preset=preset, modality=modality)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        for row in rows:
            facts = f"{row['num_tokens']:,} tokens → {row['output']}" if row["status"] == "ok" else row["detail"]
            typer.echo(f"{row['status']:9} {row['input']}  {row['reason']}  {facts}".rstrip())
    raise typer.Exit(EXIT_OK if any(row["status"] == "ok" for row in rows) else EXIT_FAILED)
