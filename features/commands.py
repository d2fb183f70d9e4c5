"""The verbs ``store``, ``bundle``, ``weights`` and ``encoder``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from features.console import PATH, add_json_option, device_option, print_result, show_bytes

if TYPE_CHECKING:
    from features.store.reader import Store


@click.group()
def store() -> None:
    """Look into a store.

    \b
    Example:
        cli.py store info store
    """


@store.command("info")
@click.argument("folder", metavar="DIR", type=PATH)
@add_json_option
def store_info(folder: Path, as_json: bool) -> None:
    """Tell what a store holds and how it was made.

    \b
    Example:
        cli.py store info store --json
    """
    from features.store.reader import open_store

    opened = open_store(folder, verify=False)
    table = opened.clips
    _print_info(
        {
            "store": str(folder),
            "fingerprint": opened.fingerprint,
            "classes": list(opened.classes),
            "clips": len(opened),
            "clips_by_split": table["split"].value_counts().to_dict(),
            "clips_by_label": table["label"].value_counts().to_dict(),
            "clips_without_face": int((table["status"] == "no-face").sum()),
            "clips_failed": len(opened.failures),
            "notes": opened.sum_notes(),
            "frames": int(table["n_frames"].sum()),
            "faces": int(table["n_faces"].sum()),
            "face_map_shape": opened.header.face_map_shape,
            "keeps_context": opened.header.keeps_context,
            "keeps_face": opened.header.keeps_face,
            "face_vector_size": opened.header.face_vector_size
            if opened.header.keeps_face
            else None,
            "expressions": _average_expressions(opened),
            "streams": dict(opened.header.streams),
            "added_streams": _describe_added_streams(opened),
            "shards": len(opened.shards),
            "bytes": sum(shard.n_bytes for shard in opened.shards),
            "config": dict(opened.header.config),
            "weights": dict(opened.header.weights),
            "licences": dict(opened.header.licences),
            "versions": dict(opened.header.versions),
        },
        as_json,
    )


def _average_expressions(opened: Store) -> dict[str, float]:
    """Expression -> mean probability over all faces; empty without expressions or faces."""
    names, n_faces = opened.header.expressions, int(opened.clips["n_faces"].sum())
    means = opened.sum_expressions().sum(axis=0) / max(n_faces, 1)
    return dict(zip(names, means.tolist(), strict=True)) if n_faces else {}


@store.command("verify")
@click.argument("folder", metavar="DIR", type=PATH)
@add_json_option
def store_verify(folder: Path, as_json: bool) -> None:
    """Read every byte of a store and tell any damage; exit 1 if there is some.

    \b
    Example:
        cli.py store verify store
    """
    from features.store.reader import open_store, verify_store

    with show_bytes("store verify") as show:
        problems = verify_store(folder, progress=show)
    n_clips = None if problems else len(open_store(folder, verify=False))
    result = {"store": str(folder), "n_clips": n_clips, "problems": problems}
    text = "\n".join(problems) or f"{folder}: {n_clips} clips, no damage"
    print_result(result, text, as_json=as_json)
    sys.exit(bool(problems))


@store.command("failures")
@click.argument("folder", metavar="DIR", type=PATH)
@add_json_option
def store_failures(folder: Path, as_json: bool) -> None:
    """List the clips that the last extract could not use, and why.

    \b
    Example:
        cli.py store failures store
    """
    from features.store.reader import open_store

    failures = open_store(folder, verify=False).failures
    lines = [f"{r.clip_id}: {r.step}: {r.reason} ({r.path})" for r in failures.itertuples()]
    result = {"store": str(folder), "failures": failures.to_dict("records")}
    print_result(result, "\n".join(lines) or f"{folder}: no clip failed", as_json=as_json)


@click.group()
def bundle() -> None:
    """Pack a store into one file that others can train from without the clips.

    \b
    Example:
        cli.py bundle pack store features.store.bundle
    """


@bundle.command("pack")
@click.argument("store_folder", metavar="STORE", type=PATH)
@click.argument("file", type=PATH)
@add_json_option
def bundle_pack(store_folder: Path, file: Path, as_json: bool) -> None:
    """Pack a store into FILE. Features and labels travel; clips, pictures and paths do not.

    \b
    Example:
        cli.py bundle pack store features.store.bundle
    """
    from features.store.bundle import pack_bundle

    with show_bytes("bundle pack") as show:
        info = pack_bundle(store_folder, file, progress=show)
    n_bytes = file.stat().st_size
    result = {"bundle": str(file), "n_clips": info.n_clips, "n_bytes": n_bytes}
    result["fingerprint"] = info.fingerprint
    print_result(result, f"{file}: {info.n_clips} clips, {n_bytes} bytes", as_json=as_json)


@bundle.command("unpack")
@click.argument("file", type=PATH)
@click.argument("folder", metavar="DIR", type=PATH)
@add_json_option
def bundle_unpack(file: Path, folder: Path, as_json: bool) -> None:
    """Check FILE and make it a store at DIR.

    \b
    Example:
        cli.py bundle unpack features.store.bundle store
    """
    from features.store.bundle import unpack_bundle

    with show_bytes("bundle unpack") as show:
        info = unpack_bundle(file, folder, progress=show)
    result = {"store": str(folder), "n_clips": info.n_clips, "fingerprint": info.fingerprint}
    text = f"{folder}: {info.n_clips} clips, fingerprint {info.fingerprint[:12]}"
    print_result(result, text, as_json=as_json)


@bundle.command("verify")
@click.argument("file", type=PATH)
@add_json_option
def bundle_verify(file: Path, as_json: bool) -> None:
    """Read every byte of a bundle and tell any damage; exit 1 if there is some.

    \b
    Example:
        cli.py bundle verify features.store.bundle
    """
    from features.store.bundle import verify_bundle

    with show_bytes("bundle verify") as show:
        problems = verify_bundle(file, progress=show)
    text = "\n".join(problems) or f"{file}: no damage"
    print_result({"bundle": str(file), "problems": problems}, text, as_json=as_json)
    sys.exit(bool(problems))


@bundle.command("info")
@click.argument("file", type=PATH)
@add_json_option
def bundle_info(file: Path, as_json: bool) -> None:
    """Tell what a bundle holds and how it was made.

    \b
    Example:
        cli.py bundle info features.store.bundle --json
    """
    from features.store.bundle import read_bundle_info

    _print_info({"bundle": str(file), **asdict(read_bundle_info(file))}, as_json)


@click.command()
@add_json_option
def weights(as_json: bool) -> None:
    """Tell which pretrained weights are in use: from where, hash, licence.

    \b
    Example:
        cli.py weights
    """
    from features.networks.weights import describe_weights

    rows = describe_weights()
    lines = [
        value if name == "network" else f"    {name:8} {value}"
        for row in rows
        for name, value in row.items()
    ]
    print_result({"weights": rows}, "\n".join(lines), as_json=as_json)


@click.group()
def encoder() -> None:
    """Look at an encoder of your own before extract uses it: docs/encoders.md.

    \b
    Example:
        cli.py encoder check dino.onnx
    """


@encoder.command("check")
@click.argument("file", type=PATH)
@click.option("--trust", is_flag=True, help="Load a program of torch.export: it can run any code.")
@device_option
@add_json_option
def encoder_check(file: Path, trust: bool, device: str, as_json: bool) -> None:
    """Read an encoder and its sidecar, run it on made-up rows, and tell what it would write.

    \b
    Example:
        cli.py encoder check dino.onnx
        cli.py encoder check dino.pt2 --trust --device cuda
    """
    from features.networks.encoder_check import check_encoder

    checked = check_encoder(file, trust=trust, device=device)
    _print_info({"file": str(file), **asdict(checked)}, as_json)


def _describe_added_streams(opened: Store) -> list[dict[str, Any]]:
    """Each stream beside the shards: what it is, how large, and how many clips lack it."""
    beside, described = opened.streams_beside, []
    for name, stream in beside.listed.items():
        lacking = opened.clips["clip_id"].isin(opened.find_lacking(name))
        n_rows = opened.clips["n_faces" if stream.rows == "face" else "n_frames"]
        described.append(
            {
                "name": name,
                "rows": stream.rows,
                "size": stream.size,
                "n_rows": int(n_rows[~lacking].sum()),
                "bytes": beside.count_bytes(name),
                "clips_lacking": int(lacking.sum()),
                "licence": stream.encoder.get("licence"),
                "sha256": stream.encoder.get("sha256"),
                "fingerprint": stream.fingerprint,
                "encoder": dict(stream.encoder),
            }
        )
    return described


def _print_info(info: dict[str, Any], as_json: bool) -> None:
    lines = []
    for name, value in info.items():
        shown = _round(value)
        if isinstance(shown, dict | list):
            shown = json.dumps(shown, ensure_ascii=False)
        lines.append(f"{name:18} {shown}")
    print_result(info, "\n".join(lines), as_json=as_json)


def _round(value: Any) -> Any:
    """The same with four digits of each number that is not whole, for people to read."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, list | tuple):
        return [_round(item) for item in value]
    return {k: _round(v) for k, v in value.items()} if isinstance(value, dict) else value
