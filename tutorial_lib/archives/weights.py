"""Checks the weights of an archive: that they are whole, and that no older ones answer in their place."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path

from tutorial_lib.archives.reading import archive_sha256
from tutorial_lib.errors import ArchiveError

_SAFETENSORS = "model.safetensors"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$|^model\.safetensors\.index\.json$")
_MARK = re.compile(rb"weights_sha256\x12\x40([0-9a-f]{64})")  # a property of the ONNX file, by its key
_TAIL = 100_000  # bytes at the end of an ONNX file, where its properties are
_MADE_OF_WEIGHTS = (".onnx", ".pt2", ".so", ".engine")


def check_safetensors(file: Path) -> None:
    """Checks that a safetensors file is whole.

    Its header has a length (8 bytes, little-endian), then JSON with each tensor's place.

    Raises:
        ArchiveError: the file is cut off, or no safetensors file.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            if length > size:
                raise ValueError("the header is not whole")
            header = json.loads(content.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        if (expected := 8 + length + max(ends, default=0)) != size:
            raise ValueError(f"the file has {size} bytes, and its header announces {expected}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, struct.error) as error:
        raise ArchiveError(
            f"The weights {file} are cut off or not safetensors: {error}. Export the model again."
        ) from error


def is_shard(name: str) -> bool:
    """Returns whether a file holds a part of a model's weights, or the index of such parts.

    >>> is_shard("model-00001-of-00002.safetensors"), is_shard("model.safetensors")
    (True, False)
    """
    return _SHARD.search(name) is not None


def check_one_model(folder: Path, serialized_file: Path | None) -> None:
    """Checks that a model folder has the weights of one model, once.

    Args:
        folder: the model folder.
        serialized_file: the archive's weights, which may lie elsewhere.

    Raises:
        ArchiveError: the folder has no weights, two sets of them, or not all shards.
    """
    names = sorted(file.name for file in folder.iterdir())
    shards = {name for name in names if is_shard(name)}
    whole = [name for name in names if name.endswith(".safetensors") and name not in shards]
    pickled = [name for name in names if re.fullmatch(r"pytorch_model.*\.bin", name)]
    if not whole and not shards and serialized_file is None:
        raise ArchiveError(
            f"There are no safetensors weights in {folder}. Export the model again: export_model "
            "turns older formats into model.safetensors."
        )
    sets = [*whole, *sorted(shards)[:1], *pickled[:1]]
    if len(sets) > 1:
        raise ArchiveError(
            f"{folder} has more than one set of weights: {', '.join(sets)}. A handler would use one of them, "
            "and not always the newest. Keep one set, and move the others out of the folder."
        )
    if shards:
        _check_shards(folder / f"{_SAFETENSORS}.index.json", shards)


def _check_shards(index: Path, shards: set[str]) -> None:
    try:
        wanted = {index.name, *json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArchiveError(
            f"The weights are in several files, and their index {index} can't be read: {error}. Save the "
            "model again."
        ) from error
    if wanted != shards:
        raise ArchiveError(
            f"{index} and its folder have not the same weights: {', '.join(sorted(wanted ^ shards))}. Save "
            "the model again, into an empty folder."
        )


def check_fresh(files: Sequence[Path], weights: Path | None) -> None:
    """Checks that what was made of a model's weights was made of these weights, not of earlier ones.

    `export_onnx` writes the SHA-256 of the weights into model.onnx. A file without that mark is compared by
    its time: it must be no older than the weights.

    Args:
        files: all files of the archive.
        weights: the archive's serialized file.

    Raises:
        ArchiveError: a file was made of other weights.
    """
    weights = next((file for file in files if file.name == _SAFETENSORS), weights)
    if weights is None or not weights.is_file():
        return
    digest = ""
    for file in files:
        if file.suffix not in _MADE_OF_WEIGHTS or file == weights or not file.is_file():
            continue
        if mark := _read_mark(file):
            digest = digest or archive_sha256(weights)
            stale = mark != digest
        else:
            stale = file.stem in ("model", weights.stem) and _is_older(file, weights)
        if stale:
            raise ArchiveError(
                f"{file} was made of earlier weights than {weights}, and would answer in their place. Make "
                "it anew (export_onnx(model_dir) does, for an exported model), or remove it."
            )


def _read_mark(file: Path) -> str:
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - _TAIL))
        found = _MARK.findall(content.read())
    return found[-1].decode() if found else ""


def _is_older(file: Path, weights: Path) -> bool:
    """Returns whether a file is older than the weights. The times of an unpacked archive tell nothing."""
    if (weights.parent / "MAR-INF").is_dir():
        return False
    return (file.parent / "MAR-INF").is_dir() or file.stat().st_mtime < weights.stat().st_mtime
