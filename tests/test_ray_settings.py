"""What an archive asks for and Ray Serve can't do is a sentence at `build_app`."""

from __future__ import annotations

import re
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import handlers
from tutorial_lib import ArchiveError, archive_sha256
from tutorial_lib.archives.building import unpack
from tutorial_lib.archives.settings import check_settings

ray = pytest.importorskip("ray", reason="pip install '.[ray]'")

from tutorial_lib.ray_app import build_app, settings  # noqa: E402
from tutorial_lib.ray_app.node import unpacked  # noqa: E402
from tutorial_lib.ray_app.settings import FAST_INGRESS, read_model, replica_bounds, warn_about_gpus  # noqa: E402

HANDLER = "def handle(data, context):\n    return data\n"
Pack = Callable[..., Path]


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    return lambda config="", **options: handlers.pack(tmp_path, "a", HANDLER, config=config, **options)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("sequenceBatching: true", r"sets sequenceBatching, which only TorchServe.* stay with TorchServe"),
        ("continuousBatching: true", "sets continuousBatching, which only TorchServe"),
        ("batchSize: many", "batchSize: 'many'. Give a whole number of at least 1"),
        ("batchSize: 0", "batchSize: 0. Give a whole number of at least 1"),
        ("maxBatchDelay: -1", "maxBatchDelay: -1. Give a whole number of at least 0"),
        ("responseTimeout: 1.5", "responseTimeout: 1.5"),
        ("jobQueueSize: true", "jobQueueSize: True"),
        ("service_envelope: jsn", "service_envelope: 'jsn'. Give one of body, json, kserve, kservev2"),
        ("service_envelope: [json]", r"service_envelope: \['json'\]"),
        ("job_queue_size: 9", "a.mar has job_queue_size, which TorchServe ignores. Write jobQueueSize"),
        ("handler: {batchSize: 8}", "has batchSize in the section handler, where TorchServe does not look"),
        ("- 1", "has no settings"),
    ],
)
def test_a_setting_that_cannot_be_served_is_an_error(config: str, sentence: str, pack: Pack) -> None:
    with pytest.raises(ArchiveError, match=sentence):
        build_app(pack(config))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("deviceIds: [1]", "sets deviceIds, which has no effect here: Ray chooses the GPUs"),
        ("useVenv: true", "sets useVenv, which has no effect here: replicas use"),
    ],
)
def test_a_setting_without_effect_is_a_warning(config: str, sentence: str, pack: Pack) -> None:
    with pytest.warns(UserWarning, match=sentence):
        build_app(pack(config))


def test_packages_that_nodes_need_are_a_warning(pack: Pack, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "needs.txt").write_text("emoji\n")
    with pytest.warns(UserWarning, match=r"needs\.txt, which is not installed"):
        build_app(pack(arguments=["-r", str(tmp_path / "needs.txt")]))
    weights = ["--serialized-file", str(tmp_path / "needs.txt")]
    named = handlers.pack(tmp_path, "named", "image_classifier", arguments=weights)
    monkeypatch.setitem(sys.modules, "torchvision", None)  # is not found
    with pytest.warns(UserWarning, match="image_classifier, which imports torchvision, not installed"):
        build_app(named)


@pytest.mark.parametrize(
    ("in_cluster", "config", "num_gpus", "sentence"),
    [
        (2, "", None, "The cluster has GPUs, and .* served on CPUs"),
        (2, "deviceType: cpu\n", None, None),
        (2, "", 0, None),
        (0, "deviceType: gpu\n", None, "the cluster has none: replicas wait"),
    ],
)
def test_gpus_that_are_unused_or_missing_are_a_warning(
    in_cluster: int, config: str, num_gpus: int | None, sentence: str | None, pack: Pack, monkeypatch: Any
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": in_cluster} if in_cluster else {})
    with warnings.catch_warnings(record=True) as caught:
        warn_about_gpus(read_model(pack(config), "my_model"), num_gpus)
    assert (sentence is None and not caught) or re.search(str(sentence), str(caught[0].message))


@pytest.mark.parametrize("missing", [["RAY_SERVE_ENABLE_HA_PROXY"], [*FAST_INGRESS], []])
def test_a_cluster_without_the_fast_ingress_is_a_warning_that_names_the_variables(
    missing: list[str], pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in missing:
        monkeypatch.delenv(name)
    with warnings.catch_warnings(record=True) as caught:
        build_app(pack(""))
    named = [name for name in FAST_INGRESS if caught and f"{name}=1" in str(caught[0].message)]
    assert named == missing and len(caught) == bool(missing)


def test_the_envelope_is_the_model_configs(pack: Pack) -> None:
    assert read_model(pack("service_envelope: json"), "a").envelope == "json"
    assert read_model(pack(), "a").envelope is None


@pytest.mark.parametrize("name", ["team/m", "", ".."])
def test_a_name_stands_in_an_address(name: str, pack: Pack) -> None:
    with pytest.raises(ValueError, match="Give a name that can stand in /predictions/<name>"):
        build_app(pack(), name=name)


@pytest.mark.parametrize("wrong", ["12", 2.5, (1, 2, 3), True])
def test_replicas_are_one_number_or_two(wrong: Any) -> None:
    with pytest.raises(ValueError, match="Give a number, or the minimum and the maximum"):
        replica_bounds(wrong, {})


@pytest.mark.parametrize("bounds", [(3, 2), (0, 2), 0, -1])
def test_replicas_are_a_range(bounds: Any) -> None:
    with pytest.raises(ArchiveError, match=r"replicas \(minWorkers to maxWorkers\) is no range"):
        replica_bounds(bounds, {})


def test_a_broken_archive_is_an_error(pack: Pack, tmp_path: Path) -> None:
    (tmp_path / "cut.mar").write_bytes(pack().read_bytes()[:-30])
    with pytest.raises(ArchiveError, match=f"^{tmp_path / 'cut.mar'} is not a model archive"):
        build_app(tmp_path / "cut.mar")


def test_another_archive_than_the_expected_one_is_refused(pack: Pack) -> None:
    mar = pack()
    build_app(mar, sha256=archive_sha256(mar))
    with pytest.raises(ArchiveError, match="is not the archive that is accounted for"):
        build_app(mar, sha256="0" * 64)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_was_read_is_what_the_digest_stands_for(
    kind: str, given: bool, pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive is swapped while `build_app` reads it: nodes take the one that was read, or none."""
    mar, other = pack("batchSize: 2"), tmp_path / "other"
    other.mkdir()
    swapped = handlers.pack(other, "a", HANDLER + "# other", config="batchSize: 8")
    if kind == "folder":
        unpack(mar, tmp_path / "unpacked")
        unpack(swapped, other / "unpacked")
        mar, swapped = tmp_path / "unpacked", other / "unpacked"
    digest = archive_sha256(mar)
    check = check_settings

    def swap(*arguments: Any) -> None:
        mar.rename(tmp_path / "before")
        swapped.rename(mar)
        check(*arguments)

    monkeypatch.setattr("tutorial_lib.ray_app.settings.check_settings", swap)
    model = read_model(mar, "a", sha256=digest if given else None)
    assert model.digest == digest and model.settings["batchSize"] == 2
    with pytest.raises(ArchiveError, match="is not the archive that was deployed"), unpacked(mar, digest):
        pass


def test_a_swap_before_the_settings_are_read_is_noticed(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the archive is swapped in between, settings and digest are those of one archive."""
    one, two = pack("batchSize: 2").rename(tmp_path / "one.mar"), pack("batchSize: 8")
    two = two.rename(tmp_path / "two.mar")
    sizes = {archive_sha256(one): 2, archive_sha256(two): 8}
    mar = tmp_path / "m.mar"
    shutil.copyfile(one, mar)
    for name in ("read_manifest", "read_settings", "read_code", "copy_checked"):
        function = getattr(settings, name)

        def swapping(*arguments: Any, function: Any = function) -> Any:
            found = function(*arguments)
            shutil.copyfile(two if mar.read_bytes() == one.read_bytes() else one, mar)
            return found

        monkeypatch.setattr(settings, name, swapping)
    model = read_model(mar, "a")
    assert sizes[model.digest] == model.settings["batchSize"]
