"""Builds an image that serves a model, and moves it to and from registries."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tutorial_lib.archives.reading import check_files, copy_checked, read_manifest
from tutorial_lib.containers.engine import ANSWER_TIMEOUT, Engine, find_engine
from tutorial_lib.containers.packages import check_packages, refuse_passwords, requirements
from tutorial_lib.course_files import course_file
from tutorial_lib.errors import EngineError, ImageError

BASE_IMAGE = "docker.io/library/debian:bookworm-slim"
LOCAL_BASE_IMAGE = "localhost/debian:bookworm-slim"  # deploy/image/base-image.sh makes it, with no registry

_STAGED_ARCHIVE = "model_store/model.mar"  # in the build context
_PIP_SETTINGS = "index-url|extra-index-url|find-links|trusted-host|cert|proxy|default-timeout"
_logger = logging.getLogger(__name__)

# What a failed build's last lines mean. The first row that matches wins.
_BUILD_HINTS = {
    "(?i)no space left on device": "",  # the engine's error says what to do
    "initializing source|resolve source metadata|short-name|pull access denied|manifest unknown": (
        "The base image {base} can't be fetched: is its registry within reach? Where there is none, "
        "deploy/image/base-image.sh makes one from Debian's packages, or name one with base=."
    ),
    "No matching distribution|Could not find a version": "pip found no package: see `pip config list`, whose "
    "settings the build uses.",
    "conflicting dependencies|ResolutionImpossible": (
        "A package of packages= or of the archive's requirements file wants versions that others, or the "
        "course's constraints.txt, exclude."
    ),
    "Temporary failure|Could not resolve|Connection (refused|timed out)": (
        "The build can't reach the network."
    ),
    "": "The build's last lines say why.",
}


class Layer(NamedTuple):
    """A layer of an image: how many MB (10⁶ bytes) it adds, and the instruction that made it."""

    megabytes: float
    instruction: str


@dataclass(frozen=True)
class Image:
    """An image on this machine.

    Attributes:
        name: as "localhost/my_model:1.0".
        engine: the engine that built the image and runs it; by default `find_engine()`'s.

    >>> Image("localhost/my_model:1.0", Engine("/usr/bin/podman", "podman")).name
    'localhost/my_model:1.0'
    """

    name: str
    engine: Engine = field(default_factory=find_engine)

    @classmethod
    def build(
        cls,
        name: str,
        archive: str | Path = "model_store/BERTweetSentimentAnalysis.mar",
        *,
        model: str = "my_model",
        base: str | None = None,
        build_args: Mapping[str, str] | None = None,
        packages: Sequence[str] = (),
        engine: Engine | None = None,
        sha256: str | None = None,
    ) -> Image:
        """Builds an archive's image from the course's deploy/image/Dockerfile, and prints the build's lines.

        The image has what the course's handler imports, the packages of the archive's own requirements file,
        onnxruntime for a model in ONNX's format, and `packages`, in the versions of constraints.txt. The
        build can use this machine's pip settings (index, certificates, a folder of wheels); the image lacks
        them.

        Args:
            name: the image's name and tag.
            archive: the .mar to serve; it may lie anywhere.
            model: the name to serve it as.
            base: the base image; None for the one that deploy/image/base-image.sh made, or else Debian's.
            build_args: more of the Dockerfile's arguments, such as TORCH_INDEX.
            packages: what the handler imports too, as pip names it: ["scikit-learn", "pillow>=11"].
            engine: the engine that builds it; None for `find_engine()`'s.
            sha256: the `archive_sha256` that the archive must have; the image gets the copy that was checked.

        Raises:
            ArchiveError: there is no such archive, or it is broken.
            EngineNotFound: no engine is installed, or none works.
            ImageError: the archive is not a .mar, or a step failed.
            TypeError, ValueError: packages is no list, or has something other than packages.
        """
        wanted = check_packages(packages)
        read_manifest(archive, sha256=sha256)
        check_files(archive)
        if not Path(archive).is_file() or not str(archive).endswith(".mar"):
            raise ImageError(
                f"An image holds a .mar, and {archive} is none. Build the archive with "
                'archive_format="default" or "zip-store".'
            )
        engine = engine or find_engine()
        if base is None:
            base = LOCAL_BASE_IMAGE if engine.has_image(LOCAL_BASE_IMAGE) else BASE_IMAGE
        arguments = {"BASE_IMAGE": base, "MODEL_NAME": model, "MODEL_ARCHIVE": _STAGED_ARCHIVE}
        arguments |= build_args or {}
        refuse_passwords(arguments)
        _logger.info("building the image %s around %s", name, archive)
        with _pip_options(arguments) as options, _build_context(Path(archive), wanted, sha256) as context:
            options += [f"--build-arg={key}={value}" for key, value in arguments.items()]
            options += ["--file", str(context / "deploy" / "image" / "Dockerfile"), str(context)]
            try:
                engine.stream("build", "--tag", name, *engine.build_options, *options)
            except EngineError as error:
                hint = next(hint for words, hint in _BUILD_HINTS.items() if re.search(words, error.output))
                hint = hint.format(base=base)
                raise ImageError(f"The image was not built. {hint}\n{error.output}") from error
        return cls(name, engine)

    def layers(self) -> list[Layer]:
        """Returns the layers that add bytes, from the base up."""
        listed = self.engine.run("history", "--no-trunc", "--format", "{{.Size}}\t{{.CreatedBy}}", self.name)
        rows = (line.partition("\t") for line in reversed(listed.splitlines()))
        layers = (Layer(_megabytes(size), _instruction(made_by)) for size, _, made_by in rows)
        return [layer for layer in layers if layer.megabytes > 0]

    @property
    def megabytes(self) -> float:
        """The image's size on disk in MB (10⁶ bytes)."""
        return int(self.engine.run("image", "inspect", "--format", "{{.Size}}", self.name)) / 1e6

    def push(self, target: str, *, tls_verify: bool = True) -> Image:
        """Tags the image with another name, "registry/name:tag", and pushes it to that registry."""
        self.engine.run("tag", self.name, target)
        self._transfer("push", target, tls_verify)
        return Image(target, self.engine)

    def pull(self, *, tls_verify: bool = True) -> Image:
        """Fetches the image of this name from its registry."""
        self._transfer("pull", self.name, tls_verify)
        return self

    def remove(self) -> None:
        """Removes the name, and the image too if this was its last name."""
        self.engine.run("rmi", self.name)

    def _transfer(self, verb: str, target: str, tls_verify: bool) -> None:
        try:
            self.engine.run(verb, *self.engine.transfer_options(tls_verify), target, timeout=None)
        except EngineError as error:
            login = f"{self.engine.name} login"
            hint = f"Is its registry up, are you logged in there ({login}), and does the name exist?"
            if "no space left" in error.output.lower():
                hint = ""  # the engine's error says what to do
            raise ImageError(f"The {verb} of {target} failed. {hint}\n{error.output}") from error


@contextlib.contextmanager
def _build_context(archive: Path, packages: Sequence[str], sha256: str | None) -> Iterator[Path]:
    """Makes a folder with a build's files, laid out like the course's, so that one Dockerfile fits both."""
    with tempfile.TemporaryDirectory(prefix="image-") as folder:
        root = Path(folder)
        shutil.copytree(course_file("deploy/image"), root / "deploy" / "image")
        for name in ("constraints.txt", "metrics.yaml"):
            shutil.copy2(course_file(name), root / name)
        staged = root / _STAGED_ARCHIVE
        staged.parent.mkdir()
        copy_checked(archive, staged, sha256)
        lines = requirements(staged, packages)  # of the archive that was checked
        refuse_passwords({"packages, or the archive's requirements file,": "\n".join(lines)})
        with (root / "deploy" / "image" / "requirements.txt").open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        yield root


@contextlib.contextmanager
def _pip_options(arguments: dict[str, str]) -> Iterator[list[str]]:
    """Gives the build options that pass on this machine's pip settings, certificates and wheels.

    If this machine's pip has its own package sources, torch comes from them too, so TORCH_INDEX is emptied.
    """
    settings = _pip_settings()
    options: list[str] = []
    lines = ["[global]"]
    for key, value in settings.items():
        words = value.split()
        if key == "cert":
            options.append(f"--secret=id=ca,src={value}")
            lines.append("cert = /run/ca.crt")
        elif key == "find-links" and Path(words[0]).is_dir():
            options.append(f"--build-context=wheels={words[0]}")
        elif urls := [word for word in words if not word.startswith(("file:", "/"))]:
            lines.append(f"{key} = {' '.join(urls)}")
    if {"index-url", "extra-index-url", "find-links"} & set(settings):
        arguments.setdefault("TORCH_INDEX", "")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "pip.conf"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        yield [f"--secret=id=pipconf,src={config}", *options]


def _pip_settings() -> dict[str, str]:
    """Returns pip's settings for package sources, by `pip config list`; the environment wins over files."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        timeout=ANSWER_TIMEOUT,
    )
    lines = sorted(listed.stdout.splitlines(), key=lambda line: line.startswith(":env:"))
    found = (re.fullmatch(rf"(?:global|install|:env:)\.({_PIP_SETTINGS})='(.+)'", line) for line in lines)
    return {match[1]: match[2].replace("\\n", " ").strip() for match in found if match}


def _megabytes(size: str) -> float:
    """Converts a size, as engines print it, to MB.

    >>> _megabytes("771 MB"), _megabytes("13.3kB"), _megabytes("1.2GB"), _megabytes("0 B")
    (771.0, 0.0133, 1200.0, 0.0)
    """
    number, unit = re.fullmatch(r"([\d.]+)\s*([kMG]?)i?B", size).groups()  # type: ignore[union-attr]
    return round(float(number) * {"": 1e-6, "k": 1e-3, "M": 1.0, "G": 1e3}[unit], 6)


def _instruction(made_by: str) -> str:
    """Converts a line of an image's history to the form that it has in the Dockerfile.

    >>> _instruction('|1 A= /bin/sh -c --mount=type=secret,id=x pip install   torch')
    'RUN pip install torch'
    >>> _instruction('/bin/sh -c #(nop) COPY file:1a2b in /opt/model.mar ')
    'COPY file:1a2b in /opt/model.mar'
    """
    text = re.sub(r"^(RUN )?(\|\d+ .*?)?/bin/sh -c ", "RUN ", made_by).removesuffix("# buildkit")
    text = re.sub(r"^RUN #\(nop\)\s*|--mount=\S+ ", "", text)
    return " ".join(text.split())
