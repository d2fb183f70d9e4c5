"""The verbs ``store``, ``bundle`` and ``weights``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from features.console import PATH, add_json_option, print_json, show_bytes


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
            "streams": dict(opened.header.streams),
            "shards": len(opened.shards),
            "bytes": sum(shard.n_bytes for shard in opened.shards),
            "config": dict(opened.header.config),
            "weights": dict(opened.header.weights),
            "versions": dict(opened.header.versions),
        },
        as_json,
    )


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
    if as_json:
        print_json({"store": str(folder), "n_clips": n_clips, "problems": problems})
    _report_damage(problems, f"{folder}: {n_clips} clips, no damage", as_json)


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
    if as_json:
        print_json({"store": str(folder), "failures": failures.to_dict("records")})
        return
    for row in failures.itertuples():
        click.echo(f"{row.clip_id}: {row.step}: {row.reason} ({row.path})")
    if failures.empty:
        click.echo(f"{folder}: no clip failed")


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
    if as_json:
        print_json(
            {
                "bundle": str(file),
                "n_clips": info.n_clips,
                "n_bytes": n_bytes,
                "fingerprint": info.fingerprint,
            }
        )
    else:
        click.echo(f"{file}: {info.n_clips} clips, {n_bytes} bytes")


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
    if as_json:
        print_json({"store": str(folder), "n_clips": info.n_clips, "fingerprint": info.fingerprint})
    else:
        click.echo(f"{folder}: {info.n_clips} clips, fingerprint {info.fingerprint[:12]}")


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
    if as_json:
        print_json({"bundle": str(file), "problems": problems})
    _report_damage(problems, f"{file}: no damage", as_json)


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

    described = [asdict(described) for described in describe_weights()]
    if as_json:
        print_json({"weights": described})
        return
    for one in described:
        click.echo(f"{one['network']}")
        for name in ("origin", "file", "sha256", "licence"):
            click.echo(f"    {name:8} {one[name]}")


def _print_info(info: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(info)
        return
    for name, value in info.items():
        shown = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        click.echo(f"{name:18} {shown}")


def _report_damage(problems: Sequence[str], all_well: str, as_json: bool) -> None:
    if not as_json:
        click.echo("\n".join(problems) or all_well)
    if problems:
        sys.exit(1)
