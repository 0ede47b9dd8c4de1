"""Checks the arguments of `TorchServe`, and chooses its ports."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from tutorial_lib.archives.building import NAME, NAME_ADVICE, check_files
from tutorial_lib.errors import ArchiveError, PortInUse, TutorialError
from tutorial_lib.preload import owner as preloading
from tutorial_lib.servers.config import PORT_NAMES, ServerConfig


def checked_preload(preload: bool | Sequence[str]) -> Sequence[str] | None:
    """Returns the packages to preload beside the usual ones, or None for no preloading."""
    if isinstance(preload, bool):
        return () if preload else None
    if not isinstance(preload, list | tuple) or not all(isinstance(name, str) for name in preload):
        raise TypeError(f"preload is {preload!r}. Give True, or a list of packages: ['torchvision'].")
    preloading.check_packages(preload)
    return tuple(preload)


def checked_models(models: Mapping[str, str | Path] | None) -> dict[str, Path]:
    if not isinstance(models, Mapping | None):
        raise TypeError(
            f"models is {models!r:.100}. Give a dict from the name to serve a model as to its archive, as "
            "{'my_model': 'model_store/my_model.mar'}."
        )
    for name, archive in (models or {}).items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"models has the name {name!r}, which TorchServe can't serve. {NAME_ADVICE}")
        if not isinstance(archive, str | os.PathLike):
            raise TypeError(f"models has {name!r}: {archive!r:.100}. Give the path of an archive.")
        if "," in Path(archive).name:
            raise ValueError(f"TorchServe reads {Path(archive).name!r} as two archives. Rename it: no comma.")
    return {name: Path(archive) for name, archive in (models or {}).items()}


def checked_log_dir(log_dir: str | Path | None) -> Path | None:
    if log_dir is None:
        return None
    if not isinstance(log_dir, str | os.PathLike) or not str(log_dir):
        raise TypeError(f"log_dir is {log_dir!r:.100}. Give the path of a folder.")
    if Path(log_dir).exists() and not Path(log_dir).is_dir():
        raise ValueError(f"log_dir is {str(log_dir)!r}, which is a file. Give a folder.")
    return Path(log_dir).absolute()


def find_store(models: Mapping[str, Path], model_store: str | Path | None) -> Path | None:
    """Returns the folder that all archives are in; TorchServe loads local archives only from there."""
    for archive in models.values():
        check_files(archive)
    folders = {archive.absolute().parent for archive in models.values()}
    if model_store is not None:
        if not isinstance(model_store, str | os.PathLike):
            raise TypeError(f"model_store is {model_store!r:.100}. Give the path of a folder.")
        store = Path(model_store).absolute()
        if not store.is_dir():
            raise ArchiveError(f"There is no model store {model_store}. Make the folder first.")
        folders.add(store)
    if len(folders) > 1:
        raise ArchiveError(
            f"TorchServe loads archives from one folder, and these lie in {len(folders)}: "
            f"{', '.join(sorted(str(folder) for folder in folders))}. Build them into one model store."
        )
    return folders.pop() if folders else None


def checked_sha256(
    sha256: Mapping[str, str] | None,
    models: Mapping[str, Path],
    model_store: str | Path | None,
    takes_code: bool,
) -> dict[str, str] | None:
    if sha256 is None:
        return None
    if not isinstance(sha256, Mapping):
        raise TypeError(
            f"sha256 is {sha256!r:.100}. Give a dict from each model's name to its archive_sha256."
        )
    for name, digest in sha256.items():
        if not isinstance(digest, str) or not re.fullmatch(r"\s*[0-9a-fA-F]{64}\s*", digest):
            raise ValueError(
                f"sha256 has {name!r}: {digest!r:.100}. Give its archive's archive_sha256: 64 hex digits."
            )
        if name not in models:
            raise ValueError(f"sha256 has {name!r}, and models does not. Is the name right?")
    if takes_code:
        raise ArchiveError(
            "A server with sha256= serves what was checked and nothing else; with model_api=True or "
            "allowed_urls a management token is enough to bring in other code. Leave those out, or sha256=."
        )
    if model_store is not None:
        raise ArchiveError(
            "A server with sha256= has a model store of its own, with what was checked and nothing else. "
            "Leave model_store= out."
        )
    unknown = sorted(set(models) - set(sha256))
    if unknown:
        raise ArchiveError(
            f"sha256= has nothing for {', '.join(unknown)}. Give the digest of each model's archive."
        )
    return dict(sha256)


def checked_ports(ports: Mapping[str, int] | None, config: ServerConfig) -> dict[str, int]:
    """Returns the ports that were asked for, in ports= or in config=."""
    if not isinstance(ports, Mapping | None):
        raise TypeError(f"ports is {ports!r:.100}. Give a dict, as {{'inference': 8080}}.")
    asked = dict(ports or {})
    for name, port in asked.items():
        if name not in PORT_NAMES:
            raise ValueError(f"There is no port {name!r}; the names are {', '.join(PORT_NAMES)}.")
        if isinstance(port, bool) or not isinstance(port, int):
            raise TypeError(f"The {name} port is {port!r}. Give a whole number, as 8080.")
        if not 0 < port < 65536:
            raise ValueError(f"The {name} port {port} is not between 1 and 65535.")
        if config.port(name) is not None:
            raise ValueError(f"Both ports and config have a port for {name}. Leave one of them out.")
    found = {name: asked.get(name) or config.port(name) for name in PORT_NAMES}
    wanted = {name: port for name, port in found.items() if port is not None}
    for name, port in wanted.items():
        if others := [other for other in wanted if wanted[other] == port and other != name]:
            raise ValueError(f"The ports of {name} and {others[0]} are both {port}. Give each its own.")
    return wanted


def choose_ports(wanted: Mapping[str, int], config: ServerConfig) -> dict[str, int]:
    """Returns the wanted ports, if they are free, and a free port for each other name."""
    with contextlib.ExitStack() as held:  # all held at once, so that no two are the same

        def hold(name: str, port: int) -> int:
            listener = held.enter_context(socket.socket())
            try:
                if os.name != "nt":  # a port in TIME_WAIT is free for TorchServe too
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((config.host(name), port))
                listener.listen()
            except OSError as error:
                raise _port_error(name, config.host(name), port, error) from error
            chosen: int = listener.getsockname()[1]
            return chosen

        given = {name: hold(name, port) for name, port in wanted.items()}
        return {name: given.get(name) or hold(name, 0) for name in PORT_NAMES}


def _port_error(name: str, host: str, port: int, error: OSError) -> TutorialError:
    if error.errno == errno.EADDRINUSE:
        return PortInUse(name, port)
    if isinstance(error, PermissionError):
        return TutorialError(
            f"The {name} port {port} is for administrators (as most below 1024). Choose a higher one."
        )
    advice = "Give an address of this machine: 127.0.0.1 for it alone, or 0.0.0.0 for all of its addresses."
    is_elsewhere = error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror)
    text = f"The {name} address {host} can't be opened: {error.strerror or error}."
    return TutorialError(f"{text} {advice}" if is_elsewhere else text)
