"""What the server refuses: unaccounted archives, foreign addresses, old tokens, other certificates."""

from __future__ import annotations

import json
import shutil
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.certificates import write_certificate
from tests.conftest import eventually, folders
from tutorial_lib import (
    ApiError,
    ArchiveError,
    InferenceClient,
    TlsError,
    TorchServe,
    archive_sha256,
    build_archive,
    load_test,
    read_manifest,
)
from tutorial_lib.clients.tokens import TokenType


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive whose handler gives back what it gets."""
    folder = tmp_path_factory.mktemp("echo")
    (folder / "echo.py").write_text(
        "def handle(data, context):\n    return data and [bytes(row['body']).decode() for row in data]\n"
    )
    return build_archive("echo", handler=folder / "echo.py", export_path=folder / "store")


def changed(mar: Path, target: Path) -> Path:
    """The same archive with a line more in its handler, as someone with access to the store would add it."""
    with zipfile.ZipFile(mar) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            more = b"\n# changed\n" if entry.filename.endswith(".py") else b""
            new.writestr(entry, old.read(entry) + more)
    return target


def test_a_changed_archive_is_refused_and_nothing_starts(echo: Path, tmp_path: Path) -> None:
    before = folders()
    store = tmp_path / "store"
    store.mkdir()
    mar = changed(echo, store / "echo.mar")
    expected = archive_sha256(echo)
    assert read_manifest(echo, sha256=expected.upper())["model"]["modelName"] == "echo"
    for refused in (
        lambda: read_manifest(mar, sha256=expected),
        TorchServe(models={"m": mar}, sha256={"m": expected}).start,
    ):
        with pytest.raises(ArchiveError, match=f"store/echo.mar is not .*{expected} was expected") as raised:
            refused()
        assert archive_sha256(mar) in str(raised.value)
    assert folders() == before


def test_what_was_checked_is_what_is_served(echo: Path, tmp_path: Path) -> None:
    """The server serves its own copy: a change after the check, another archive and a folder stay outside."""
    store = tmp_path / "store"
    store.mkdir()
    mar = store / "echo.mar"
    shutil.copyfile(echo, mar)
    folder = build_archive(
        "folder", handler=echo.parent.parent / "echo.py", export_path=tmp_path, archive_format="no-archive"
    )
    with TorchServe(models={"m": mar}, sha256={"m": archive_sha256(echo)}) as server:
        changed(echo, mar)
        server.management.scale("m", min_worker=2)
        assert server.inference.predict("m", b"hi") == "hi"
        for foreign in (changed(echo, store / "other.mar").name, f"file://{mar}", folder.absolute()):
            with pytest.raises(ApiError) as raised:
                server.management.register(foreign, "foreign")
            assert raised.value.status == 405
        assert [entry["modelName"] for entry in server.management.list_models()] == ["m"]
        for worker in server.management.describe("m")["workers"]:
            unpacked = Path(psutil.Process(worker["pid"]).cwd())
            assert (unpacked / "echo.py").read_bytes() == (echo.parent.parent / "echo.py").read_bytes()


def test_a_folder_has_one_digest_whatever_its_order_and_each_file_counts(tmp_path: Path) -> None:
    for name, order in (("one", "ab"), ("two", "ba")):
        for file in order:
            (tmp_path / name / "sub").mkdir(parents=True, exist_ok=True)
            (tmp_path / name / "sub" / file).write_text(file)
    one = archive_sha256(tmp_path / "one")
    assert archive_sha256(tmp_path / "two") == one
    (tmp_path / "two" / "sub" / "a").rename(tmp_path / "two" / "a")
    assert archive_sha256(tmp_path / "two") != one


def test_a_folder_archive_is_checked_and_served(tmp_path: Path) -> None:
    (tmp_path / "h.py").write_text("def handle(data, context):\n    return data and ['ok'] * len(data)\n")
    folder = build_archive(
        "h", handler=tmp_path / "h.py", export_path=tmp_path / "store", archive_format="no-archive"
    )
    with TorchServe(models={"m": folder}, sha256={"m": archive_sha256(folder)}) as server:
        assert server.inference.predict("m", b"") == "ok"


@pytest.mark.parametrize(
    "options",
    [
        {"model_api": True},
        {"config": {"enable_model_api": True}},
        {"config": {"enable_model_api": "true"}},
        {"config": {"allowed_urls": "file://.*"}},
    ],
)
def test_digests_and_a_way_in_for_other_code_do_not_go_together(options: dict[str, Any], echo: Path) -> None:
    """Registered with a management token, a folder from anywhere would be served unchecked."""
    with pytest.raises(ArchiveError, match=r"a management token is enough .* Leave those out, or sha256="):
        TorchServe(models={"m": echo}, sha256={"m": archive_sha256(echo)}, **options)
    closed = {"enable_model_api": False, "allowed_urls": "none"}
    TorchServe(models={"m": echo}, sha256={"m": archive_sha256(echo)}, config=closed)


def test_every_model_must_be_accounted_for(echo: Path) -> None:
    with pytest.raises(ArchiveError, match="sha256= has nothing for b, c"):
        TorchServe(models={"a": echo, "c": echo, "b": echo}, sha256={"a": archive_sha256(echo)})
    with pytest.raises(ArchiveError, match="Leave model_store= out"):
        TorchServe(models={"a": echo}, sha256={"a": archive_sha256(echo)}, model_store=echo.parent)
    with pytest.raises(ArchiveError, match=r"There is no archive missing\.mar"):
        archive_sha256("missing.mar")


@pytest.fixture(scope="module")
def strict(echo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """https with a certificate of a new authority, and tokens that live for 6 seconds."""
    folder = tmp_path_factory.mktemp("tls")
    files = write_certificate(folder, "127.0.0.1")
    with TorchServe(
        models={"m": echo}, model_api=True, config={**files, "token_expiration_min": 0.1}
    ) as server:
        yield server


@pytest.fixture(scope="module")
def plain(echo: Path) -> Iterator[TorchServe]:
    """Tokens that live for 6 seconds, without https."""
    with TorchServe(models={"m": echo}, config={"token_expiration_min": 0.1}) as server:
        yield server


def test_https_is_verified(strict: TorchServe) -> None:
    assert strict.inference_address.startswith("https://127.0.0.1:")
    assert strict.inference.predict("m", b"hi") == "hi"
    assert not strict.metrics.scrape("ts_").empty
    with pytest.raises(TlsError, match="give the client verify="):
        InferenceClient(strict.inference_address, token=strict.token("inference")).ping()
    with pytest.raises(TlsError, match="verify="):  # signed for 127.0.0.1 alone
        InferenceClient(
            strict.inference_address.replace("127.0.0.1", "localhost"), verify=strict.inference._verify
        ).ping()
    with pytest.raises(ApiError):
        InferenceClient(strict.inference_address.replace("https", "http")).ping()


def test_an_expired_token_is_refused_and_the_client_renews_its_own(strict: TorchServe) -> None:
    strict.inference.ping()
    old = strict.token("inference")
    verify = strict.inference._verify
    plain = InferenceClient(strict.inference_address, token=old, verify=verify)

    def expired() -> bool:
        try:
            return not plain.ping()
        except ApiError as error:
            assert error.kind == "InvalidKeyException" and "missing, wrong or expired" in str(error)
            return True

    eventually(expired, 20)
    assert old in strict.key_file.read_text()  # nobody renewed it, it only grew old
    assert strict.inference.predict("m", b"hi") == "hi"
    assert strict.token("inference") != old
    assert strict.management.list_models() != []  # as does the other kind


def test_a_token_that_is_asked_for_is_valid(strict: TorchServe) -> None:
    """After a rest that is longer than its life, and while it lives it stays the same."""
    kinds: dict[TokenType, str] = {
        "inference": f"{strict.inference_address}/ping",
        "management": f"{strict.management_address}/models",
    }

    def is_refused(url: str, token: str) -> bool:
        headers = {"Authorization": f"Bearer {token}"}
        return (
            requests.get(url, headers=headers, verify=str(strict.inference._verify), timeout=30).status_code
            == 400
        )

    old = {kind: strict.token(kind) for kind in kinds}
    assert {kind: strict.token(kind) for kind in kinds} == old
    for kind, url in kinds.items():
        eventually(partial(is_refused, url, old[kind]), 20)
        assert not is_refused(url, strict.token(kind))


def test_threads_share_one_token_while_it_expires_again_and_again(strict: TorchServe) -> None:
    """The server writes the key file in place, and a new access token makes the last one invalid."""
    end = time.monotonic() + 13  # two expiries

    def ask(_: int) -> bool:
        return strict.inference.ping()["status"] == "Healthy" and bool(strict.management.list_models())

    with ThreadPoolExecutor(8) as threads:
        while time.monotonic() < end:
            assert all(threads.map(ask, range(8)))  # all at once, also when the token has just expired
            time.sleep(0.1)  # else the other tests wait for the cores


def test_a_load_test_outlives_its_token(plain: TorchServe) -> None:
    """The first request comes after a rest, and the row is longer than the token's life."""
    old = plain.token("inference")
    key_file = json.loads(plain.key_file.read_text())
    expires = datetime.fromisoformat(key_file["inference"]["expiration time"])
    eventually(lambda: datetime.now(UTC) > expires, 20)
    row = load_test(plain, [b"hi"], labels=["hi"], concurrency=4, duration=9, warmup=0).iloc[0]
    assert set(row["outcomes"]) == {"right"}, row["outcomes"]
    assert plain.token("inference") != old


def test_no_address_is_allowed_and_the_sentence_says_how(strict: TorchServe) -> None:
    for url in ("http://127.0.0.1:9/x.mar", "file:///x.mar"):
        with pytest.raises(ApiError, match="allowed_urls") as raised:
            strict.management.register(url, "foreign")
        assert raised.value.status == 404


def test_a_workflow_is_not_fetched_either(server: TorchServe) -> None:
    """TorchServe's switch for the model API does not cover workflows; allowed_urls does."""
    answer = requests.post(
        f"{server.management_address}/workflows",
        params={"url": "http://127.0.0.1:9/x.war"},
        headers={"Authorization": f"Bearer {server.token('management')}"},
        timeout=30,
    )
    assert answer.status_code == 404 and "does not match any allowed URL" in answer.json()["message"]


def test_the_key_file_is_the_owners_alone(server: TorchServe) -> None:
    path = server.key_file
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


def test_only_loopback_is_listened_on(server: TorchServe) -> None:
    java = next(p for p in psutil.Process(server.pid).children() if p.name().startswith("java"))
    listening = {c.laddr.ip for c in java.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
