"""What chapter 06 needs around an image: its Dockerfile in parts, a registry, a stop under load."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from textwrap import shorten
from typing import Any

import yaml

from course.measuring import quick
from course.servers import free_port, is_answered
from course.waiting import wait_until
from tutorial_lib import Container, Engine, EngineNotFound, Image, InferenceClient, TorchServe, find_engine


def engine_with(image: str, *, build: bool) -> Engine | None:
    """Returns the container engine if it has this image or may build it; else None, and prints the reason."""
    replayed = "Below are the outputs of the committed run."
    try:
        engine = find_engine()
    except EngineNotFound as error:
        print(f"{error} {replayed}")
        return None
    if build or (not quick and engine.has_image(image)):
        print("The cells below run.")
        return engine
    if quick:  # a build takes minutes
        print(f"COURSE_QUICK is set: `make container` builds the image and runs the cells below. {replayed}")
        return None
    print(f"No image yet: run `make container` first, or set BUILD = True. {replayed}")
    return None


def dockerfile_part(start: str) -> str:
    """Returns a part of deploy/image/Dockerfile, without the linter's comments.

    Args:
        start: how the part's first line begins, such as "# 1."; the part ends before the next one.
    """
    text = re.sub(r"# hadolint.*\n", "", Path("deploy/image/Dockerfile").read_text())
    (part,) = [
        part for part in text.split("\n\n") if any(line.startswith(start) for line in part.split("\n"))
    ]
    return part


def build(name: str, archive: Path, **options: Any) -> tuple[Image, list[str]]:
    """Runs `Image.build`; also returns the steps that the engine printed, in short lines without folders."""
    with redirect_stdout(StringIO()) as printed:
        image = Image.build(name, archive, **options)
    found = re.findall(r"^(?:(?:\[\d/\d\] )?STEP|#\d+ \[).*", printed.getvalue(), re.MULTILINE)
    without_mounts = [re.sub(r"--mount=\S+", "", step) for step in found]
    short = [re.sub(r"(?<=[ =])/\S*/", "…/", step) for step in without_mounts]
    return image, [shorten(step, 100, placeholder=" …") for step in short]


def draw_sizes(sizes: Mapping[str, float]) -> None:
    """Plots one bar, with a piece for each size in MB, from the left."""
    import matplotlib.pyplot as plt

    left = 0.0
    _, axis = plt.subplots(figsize=(9, 2.4))
    for name, size in sizes.items():
        label = f"{name}: {f'{size:.0f}' if size > 1 else 'under 1'} MB"
        axis.barh(0, size, left=left, label=label, edgecolor="white")
        left += size
    axis.set(xlabel="MB, from the base up", yticks=[], ylim=(-0.5, 1.6))
    axis.legend(ncols=3, loc="upper left", frameon=False)
    axis.spines[["top", "right", "left"]].set_visible(False)
    plt.show()


def left_out_of_torch() -> float:
    """Returns the MB of the files here that the Dockerfile removes from torch."""
    spec = find_spec("torch")
    assert spec and spec.origin
    folder = Path(spec.origin).parent
    paths = [folder / "include", folder / "share", folder / "test"]
    paths += [*folder.glob("bin/test_*"), *folder.glob("bin/protoc*")]
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def lasting_request(
    server: Container | TorchServe, texts: list[str], seconds: float = 0.5
) -> dict[str, list[str]]:
    """Makes a request that keeps the model my_model busy for about this long, at most 198 texts.

    Six of them then stay below max_batch_tokens of model-config.yaml, on a fast machine too.
    """
    many = [f"{text} {number}" for number in range(66) for text in texts]
    server.inference.predict("my_model", {"input": many[:60]})  # a worker's first pass is slower
    started = time.monotonic()
    server.inference.predict("my_model", {"input": many[:60]})
    return {"input": many[: max(6, int(60 * seconds / (time.monotonic() - started)))]}


def answered_in_full(server: Container | TorchServe, request: dict[str, list[str]], count: int = 6) -> int:
    """Stops a server while some requests are open; returns how many of them were answered in full."""
    with ThreadPoolExecutor(count) as pool:
        token = server.token("inference")
        clients = [InferenceClient(server.inference_address, token=token) for _ in range(count)]
        asked = [pool.submit(client.predict, "my_model", request) for client in clients]
        time.sleep(0.3)
        assert not all(one.done() for one in asked)
        server.stop()
        answers = [one.result() for one in asked if one.exception() is None]
    return sum(len(answer) == len(request["input"]) for answer in answers)


@contextmanager
def registry() -> Iterator[tuple[str, Path]]:
    """Runs `docker-registry` on a free port of loopback; yields its address, and the folder of its files."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        storage = {"filesystem": {"rootdirectory": str(folder / "files")}}
        http = {"addr": f"127.0.0.1:{port}"}
        config = {"version": 0.1, "log": {"level": "error"}, "http": http, "storage": storage}
        (folder / "registry.yml").write_text(yaml.safe_dump(config))
        command = ["docker-registry", "serve", str(folder / "registry.yml")]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as process:
            try:
                wait_until(lambda: process.poll() is not None or is_answered(port))
                yield f"127.0.0.1:{port}", folder / "files"
            finally:
                process.terminate()


def has_registry() -> bool:
    """Returns whether the program `docker-registry` is on PATH."""
    return shutil.which("docker-registry") is not None
