"""Which way a request and its secrets go: proxies, redirects, other spellings of loopback, errors."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_server import FakeServer, Reply, fake_server, keys
from tutorial_lib import (
    ApiError,
    InferenceClient,
    KeyFile,
    ManagementClient,
    NoAnswer,
    TutorialError,
    load_test,
)
from tutorial_lib.servers.config import ServerConfig


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as server:
        yield server


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeServer) -> FakeServer:
    """A .netrc for every host, and the fake server as the proxy, as a company's machine has them."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password netrc\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, fake.address)
    return fake


@pytest.mark.parametrize("token", ["secret", None])
def test_loopback_goes_past_proxies_and_netrc(
    token: str | None, tmp_path: Path, environment: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for address in (environment.address, environment.address.replace("127.0.0.1", "localhost")):
        with InferenceClient(address, token=token) as client:
            assert client.ping() == {}
    assert {seen.authorization for seen in environment.seen} == {token and f"Bearer {token}"}
    KeyFile(keys(tmp_path / "key_file.json"), environment.address).refresh("inference")
    assert environment.seen[-1].authorization == "Bearer api"


def test_another_host_is_asked_through_the_proxy_with_the_token(environment: FakeServer) -> None:
    InferenceClient("http://torchserve.example", token="secret").ping()
    seen = environment.seen[0]
    assert (seen.path, seen.authorization) == ("http://torchserve.example/ping", "Bearer secret")


@pytest.mark.parametrize(
    ("target", "authorization"),
    [("http://torchserve.example/there", "Bearer secret"), ("http://other.example/there", None)],
)
def test_a_redirect_takes_the_token_to_no_other_host(
    target: str, authorization: str | None, environment: FakeServer
) -> None:
    environment.answers = [Reply(302, headers={"Location": target}), Reply(200, b"{}")]
    InferenceClient("http://torchserve.example", token="secret").ping()
    assert (environment.seen[1].path, environment.seen[1].authorization) == (target, authorization)


# However this machine is spelled


@pytest.mark.parametrize(
    ("host", "is_here"),
    [
        *((host, True) for host in ("127.0.0.1", "127.1", "127.0.1", "127.8.9.10", "2130706433", "0x7f.1")),
        *((host, True) for host in ("0x7f000001", "0177.0.0.1", "127.0.0.1.", "localhost", "LOCALHOST")),
        *((host, True) for host in ("localhost.", "me.localhost", "ip6-localhost", "[::1]", "0", "0.0.0.0")),
        *((host, True) for host in ("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:0:0:1]", "[::]")),
        *((host, True) for host in ("１２７.0.0.1", "name.of.this.machine")),
        *(
            (host, False)
            for host in ("10.0.0.1", "[::ffff:10.0.0.1]", "127.0.0.1.example", "localhost.example")
        ),
        *((host, False) for host in ("no.such.example", "both.example", "a..b", "x" * 70)),
    ],
)
def test_this_machine_is_asked_past_the_proxy_however_it_is_spelled(
    host: str, is_here: bool, environment: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo
    names = {"name.of.this.machine": ["127.0.1.1"], "both.example": ["127.0.0.1", "10.0.0.1"]}

    def getaddrinfo(name: Any, *args: Any, **options: Any) -> Any:
        if name in names:
            return [entry for ip in names[name] for entry in resolve(ip, *args, **options)]
        if str(name).endswith(".example"):
            raise socket.gaierror
        return resolve(name, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    client = InferenceClient(f"http://{host}:{environment.server_port}", token="secret", timeout=(0.5, 5))
    assert client._session.trust_env is not is_here


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.1", "127.0.0.1", "localhost"])
def test_its_token_does_not_reach_the_proxy(
    host: str, environment: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with fake_server() as proxy:
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, proxy.address)
        address = environment.address.replace("127.0.0.1", host)
        InferenceClient(address, token="secret").predict("m", b"")
        KeyFile(keys(tmp_path / "key_file.json"), address).refresh("inference")
        assert proxy.seen == [] and len(environment.seen) == 2


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("stream", [False, True])
def test_a_body_is_not_redirected_to_another_host(status: int, stream: bool, fake: FakeServer) -> None:
    with fake_server() as other:
        target = f"{other.address}/predictions/m?token=hidden"
        fake.answers = [Reply(status, headers={"Location": target})]
        client = InferenceClient(fake.address, token="secret")
        ask = client.predict_stream if stream else client.predict
        with pytest.raises(
            ApiError, match=r"redirects to .* another host or port\. The request was not"
        ) as raised:
            ask("m", {"private": 1}, headers={"X-Api-Key": "mine"}, retries=2)
        assert other.seen == [] and len(fake.seen) == 1
        assert other.address in str(raised.value) and "hidden" not in str(raised.value)


def test_no_management_call_is_redirected_to_another_host(fake: FakeServer) -> None:
    with fake_server() as other:
        fake.answers = [Reply(307, headers={"Location": other.address})]
        management = ManagementClient(fake.address, token="secret")
        calls: list[Callable[[], object]] = [
            lambda: management.register("m.mar"),
            lambda: management.scale("m", min_worker=1),
            lambda: management.unregister("m"),
        ]
        for call in calls:
            with pytest.raises(ApiError, match="another host or port"):
                call()
        assert other.seen == []


def test_a_body_is_redirected_on_the_same_host(fake: FakeServer) -> None:
    fake.answers = [Reply(307, headers={"Location": "/predictions/m/"}), Reply(200, b"1")]
    assert InferenceClient(fake.address, token="secret").predict("m", b"body") == 1
    assert (fake.seen[1].body, fake.seen[1].authorization) == (b"body", "Bearer secret")


def test_load_test_names_a_redirect(fake: FakeServer) -> None:
    with fake_server() as other:
        fake.answers = [Reply(307, headers={"Location": other.address})]
        with pytest.raises(ApiError, match="307 Redirected: Give load_test the address"):
            load_test(fake.address, [b"body"])
        assert other.seen == []


# Secrets in errors

HIDDEN = "s3cr3t"


def use(address: Any, **options: Any) -> None:
    InferenceClient(address, timeout=(0.5, 5), **options).predict("m", b"")


@pytest.mark.parametrize(
    "call",
    [
        lambda _: use(f"http://me:{HIDDEN}@127.0.0.1:1"),
        lambda _: use(f"https://me:{HIDDEN}@127.0.0.1:1"),
        lambda _: use(f"http://{HIDDEN}@127.0.0.1:1"),
        lambda _: use(f"http://me:p/{HIDDEN}@127.0.0.1:1"),
        lambda _: use(f"http://me:p {HIDDEN}@127.0.0.1:1"),
        lambda _: use(f"http://me:p@{HIDDEN}@127.0.0.1:1"),
        lambda _: use(f"http://me:{HIDDEN * 30}@127.0.0.1:1"),
        lambda _: use(f"me:{HIDDEN}@127.0.0.1:1"),
        lambda _: use(f"ftp://me:{HIDDEN}@127.0.0.1:1"),
        lambda _: use(f"http://me:{HIDDEN}@127.0.0.1:1/predictions"),
        lambda _: use(f"http://me:{HIDDEN}@127.0.0.1:1".encode()),
        lambda _: use(f"http://127.0.0.1:1/?token={HIDDEN}"),
        lambda _: use(f"http://127.0.0.1:1/ping?token={HIDDEN}"),
        lambda _: use(f"127.0.0.1:1?token={HIDDEN}"),
        lambda _: use(f"http://127.0.0.1:1/#token={HIDDEN}"),
        lambda _: use("http://127.0.0.1:1", token=f"{HIDDEN}\n"),
        lambda _: use("http://127.0.0.1:1", token=[HIDDEN]),
        lambda _: KeyFile(Path("missing.json"), f"http://me:{HIDDEN}@127.0.0.1:1").token("inference"),
        lambda _: KeyFile(keys(Path("k.json")), f"http://me:{HIDDEN}@127.0.0.1:1").refresh("inference"),
        lambda _: load_test(f"http://me:{HIDDEN}@127.0.0.1:1/", [b"a"]),
        lambda _: load_test(f"http://127.0.0.1:1/?token={HIDDEN}", [b"a"]),
        lambda fake: load_test(fake.address, [b"a"], headers={"Authorization": f"Bearer {HIDDEN}"}),
    ],
)
def test_an_address_shows_no_secret(
    call: Callable[[FakeServer], Any], fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the message, and not in the traceback that a notebook shows."""
    monkeypatch.chdir(tmp_path)
    fake.answers = [Reply(400, b"no")]
    with pytest.raises((TutorialError, ValueError)) as raised:
        call(fake)
    assert_hidden(raised.value)


def assert_hidden(error: BaseException) -> None:
    shown: traceback.TracebackException | None = traceback.TracebackException.from_exception(error)
    while shown is not None:
        assert HIDDEN not in "".join(shown.format_exception_only())
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Api-Key": f"{HIDDEN}\n"},
        {"X-Api-Key": f" {HIDDEN}"},
        {"X-Api-Key": f"{HIDDEN}€"},
        {"X-Api-Key": HIDDEN.encode()},
        {"X-Api-Key": [HIDDEN]},
        {"Authorization": f"Bearer {HIDDEN}"},
    ],
)
def test_a_header_shows_no_value(headers: Any, fake: FakeServer) -> None:
    with pytest.raises((TypeError, ValueError), match="header") as raised:
        InferenceClient(fake.address).predict("m", b"", headers=headers)
    assert_hidden(raised.value)
    assert fake.seen == []


@pytest.mark.parametrize("port", [1, None])
def test_the_url_of_an_archive_shows_no_secret(port: int | None, fake: FakeServer) -> None:
    url = f"http://me:{HIDDEN}@host.example/m.mar?signature={HIDDEN}"
    fake.fail(404, "ModelNotFoundException", f"Given URL {url} does not match any allowed URL(s)")
    with pytest.raises((ApiError, NoAnswer)) as raised:
        ManagementClient(fake.address if port is None else f"http://127.0.0.1:{port}").register(url, "m")
    assert_hidden(raised.value)
    fake.answers = [Reply(200, b"<html>")]
    with pytest.raises(ApiError, match="is not TorchServe") as raised:
        ManagementClient(fake.address).register(url, "m")
    assert_hidden(raised.value)


def test_a_proxys_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy in (f"http://me:{HIDDEN}@127.0.0.1:1", f"bad://me:{HIDDEN}@127.0.0.1:1"):
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(NoAnswer) as raised:
            use("http://torchserve.example")
        assert_hidden(raised.value)


@pytest.mark.parametrize(
    "config",
    [
        {"keystore_pass": HIDDEN.encode()},
        {"keystore_pass": f"$$A$${HIDDEN}"},
        {"keystore_pass": [HIDDEN]},
        {"keystore_password": HIDDEN},
        {"vmargs": f"-Djavax.net.ssl.keyStorePassword={HIDDEN}ü"},
        {"inference_address": f"http://me:{HIDDEN}@127.0.0.1:8080"},
        [("keystore_pass", HIDDEN)],
    ],
)
def test_a_config_shows_no_password(config: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="config") as raised:
        ServerConfig.of(config)
    assert_hidden(raised.value)
    assert HIDDEN not in repr(ServerConfig.of({"keystore_pass": HIDDEN}))
