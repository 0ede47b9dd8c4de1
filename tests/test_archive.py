"""Archives: what is packed and read back, what is refused before packing, and what TorchServe then serves."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import struct
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import handlers
from tutorial_lib import ArchiveError, PackageMissing, TorchServe, build_archive, read_manifest
from tutorial_lib.archives.building import (
    ArchiveFormat,
    lay_out,
    new_version,
    python_files,
    read_settings,
    unpack,
)
from tutorial_lib.testing import check_handler, run_handler

HANDLER = "def handle(data, context):\n    return data and [1] * len(data)\n"


def safetensors(header: object, data: bytes = b"") -> bytes:
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + data


WEIGHTS = safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"1234")


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Any]:
    """The arguments of `build_archive` for a small archive with a file of each kind."""
    source = tmp_path / "source"
    (source / "tools" / "__pycache__").mkdir(parents=True)
    (source / "model").mkdir()
    files = {
        "handler.py": HANDLER,
        "a,b [1].txt": "a name that the archiver splits or takes for a pattern",
        "tools/__init__.py": "",
        "tools/words.py": "",
        "tools/__pycache__/words.pyc": "",
        "settings.yaml": "minWorkers: 1\nhandler:\n  max_texts: 7\n",
        "requirements.txt": "",
        "model/config.json": "{}",
    }
    for name, content in files.items():
        (source / name).write_text(content)
    (source / "model" / "model.safetensors").write_bytes(WEIGHTS)
    return {
        "handler": source / "handler.py",
        "model_dir": source / "model",
        "extra_files": [source / "a,b [1].txt", source / "tools"],
        "config_file": source / "settings.yaml",
        "requirements_file": source / "requirements.txt",
        "export_path": tmp_path / "store",
    }


def contents(folder: Path) -> dict[str, bytes]:
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if name != "MAR-INF/MANIFEST.json"}


@pytest.mark.parametrize("kind", ["default", "zip-store", "no-archive", "tgz"])
def test_every_format_is_read_and_unpacked_alike(
    kind: ArchiveFormat, parts: dict[str, Any], tmp_path: Path
) -> None:
    archive = build_archive("m", **parts, version="2.0", archive_format=kind)
    assert [path.name for path in (tmp_path / "store").iterdir()] == [archive.name]
    model = read_manifest(archive)["model"]
    assert model == {
        "modelName": "m",
        "modelVersion": "2.0",
        "handler": "handler.py",
        "serializedFile": "model.safetensors",
        "configFile": "settings.yaml",
        "requirementsFile": "requirements.txt",
    }
    assert read_settings(archive) == {"minWorkers": 1, "handler": {"max_texts": 7}}
    assert python_files(archive) == {"handler.py", "tools/__init__.py"}
    unpack(archive, tmp_path / "new" / "unpacked")
    del parts["export_path"], parts["requirements_file"]
    lay_out(tmp_path / "laid out", **parts)
    unpacked = contents(tmp_path / "new" / "unpacked")
    assert unpacked.pop("requirements.txt") == b""
    assert unpacked == contents(tmp_path / "laid out")
    assert set(unpacked) == {
        *("handler.py", "a,b [1].txt", "tools/__init__.py", "tools/words.py", "settings.yaml"),
        *("config.json", "model.safetensors"),
    }


def test_an_archive_is_replaced_when_the_new_one_is_whole(parts: dict[str, Any], tmp_path: Path) -> None:
    for kind in ("default", "no-archive"):
        old = build_archive("m", **parts, archive_format=kind)
        before = read_manifest(old)
        with pytest.raises(ArchiveError):
            build_archive("m", **{**parts, "handler": "gone.py"}, archive_format=kind)
        assert read_manifest(old) == before
        assert read_manifest(build_archive("m", **parts, version="2.0", archive_format=kind)) != before
    assert {path.name for path in (tmp_path / "store").iterdir()} == {"m.mar", "m"}


def test_an_archive_without_settings_has_none(tmp_path: Path) -> None:
    (tmp_path / "h.py").write_text(HANDLER)
    lay_out(tmp_path / "unpacked", handler=tmp_path / "h.py")
    assert read_settings(tmp_path / "unpacked") == {}


def test_without_the_archiver_the_extra_is_named(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_archiver", None)
    with pytest.raises(PackageMissing, match=r"pip install 'torchserve-course\[serving\]'"):
        build_archive("m", **parts)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "team/m"}, "can't be an archive's name"),
    ({"name": ""}, "can't be an archive's name"),
    ({"archive_format": "rar"}, "Unknown archive format"),
    ({"handler": "nowhere.py"}, "no handler file"),
    ({"extra_files": [".hidden"]}, "packs no folder with a leading dot. Rename .*hidden"),
    ({"handler": "image_clasifier"}, "one of TorchServe's own handlers: base_handler, text_classifier"),
    ({"handler": "handler.py:go"}, "not a function of it"),
    ({"model_dir": "no"}, "no model folder"),
    ({"model_dir": "tools"}, "no config.json"),
    ({"model_dir": "pickled"}, "no safetensors weights"),
    ({"extra_files": ["gone"]}, "no file"),
    ({"extra_files": ["model/config.json"]}, "same name"),
    ({"handler": "json.py"}, "json.py in place of the module json"),
    ({"extra_files": ["yaml.py"]}, "yaml.py in place of the module yaml"),
    ({"extra_files": ["torch"]}, "torch in place of the module torch"),
    ({"extra_files": "settings.yaml"}, "Give a list of paths"),
    ({"extra_files": [7]}, "Give a path"),
    ({"config_file": {"minWorkers": 1}}, "Give a path"),
    ({"config_file": "bad.yaml"}, "is not YAML"),
    ({"config_file": "list.yaml"}, "has no settings"),
    ({"serialized_file": "model/model.safetensors"}, "Leave one of them out"),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_wrong_arguments_are_refused_with_a_sentence(
    changes: dict[str, Any], sentence: str, parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(parts["handler"]).parent
    monkeypatch.chdir(source)
    (source / "bad.yaml").write_text("a: [")
    (source / "list.yaml").write_text("[1]")
    (source / "pickled").mkdir()
    (source / "pickled" / "config.json").write_text("{}")
    (source / "torch").mkdir()
    (source / ".hidden").mkdir()
    for module in ("json.py", "yaml.py", "torch/__init__.py"):
        (source / module).write_text(HANDLER)
    with pytest.raises(ArchiveError, match=sentence):
        build_archive(**{"name": "m", **parts, **changes})
    assert not (source / "store").exists()


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"1234",
        WEIGHTS[:-1],
        WEIGHTS + b"0",
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 4) + b"{}!!",
        safetensors([]),
        safetensors({"w": 1}),
        safetensors({"w": {"data_offsets": []}}),
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_weights_that_are_cut_off_are_refused(damaged: bytes, parts: dict[str, Any]) -> None:
    (Path(parts["model_dir"]) / "model.safetensors").write_bytes(damaged)
    with pytest.raises(ArchiveError, match="cut off or not safetensors"):
        build_archive("m", **parts)


@pytest.mark.parametrize(
    ("config", "labels", "sentence"),
    [
        ('{"id2label": {"0": "a", "1": "b", "2": "c"}}', '{"0": "A", "1": "B", "2": "C"}', None),
        ("{}", '{"0": "A", "1": "B"}', None),  # transformers leaves out the labels of two classes
        ('{"num_labels": 3}', '{"0": "A", "1": "B", "2": "C"}', None),
        ("{}", '{"0": ["n1", "A"], "1": ["n2", "B"]}', None),  # as TorchServe's image handlers have them
        ("{}", '{"object_type_names": ["A", "B"]}', None),
        ("{}", '{"0": "A"}', "one label"),
        ("{}", '{"0": "A", "1": "B", "2": "C"}', "one label"),
        ("{}", '{"0": 1, "1": 2}', "should look like"),
        ("{}", '{"0": [], "1": []}', "should look like"),
        ("{}", "[]", "should look like"),
        ("{}", "{", "is not JSON"),
        ("{", '{"0": "A", "1": "B"}', "can't be read"),
    ],
)
def test_label_maps(config: str, labels: str, sentence: str | None, parts: dict[str, Any]) -> None:
    model_dir = Path(parts["model_dir"])
    (model_dir / "config.json").write_text(config)
    (model_dir.parent / "index_to_name.json").write_text(labels)
    parts["extra_files"] = [model_dir.parent / "index_to_name.json"]
    if sentence is None:
        build_archive("m", **parts)
        return
    with pytest.raises(ArchiveError, match=sentence):
        build_archive("m", **parts)


def tar_with(member: tarfile.TarInfo) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with tarfile.open(path, "w:gz") as tar:
            manifest = json.dumps({"model": {"modelName": "m"}}).encode()
            info = tarfile.TarInfo("m/MAR-INF/MANIFEST.json")
            info.size = len(manifest)
            tar.addfile(info, io.BytesIO(manifest))
            tar.addfile(member)

    return write


def link(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc"
    return member


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("m.mar", lambda path: path.write_bytes(b"PK no zip")),
        ("m.mar", lambda path: zipfile.ZipFile(path, "w").close()),
        ("m.tar.gz", lambda path: path.write_bytes(b"no tar")),
        ("m.tar.gz", tar_with(tarfile.TarInfo("m/../../escaped"))),
        ("m.tar.gz", tar_with(link("m/link"))),
        ("m", lambda path: path.mkdir()),
    ],
)
def test_what_is_no_archive_is_not_unpacked(name: str, write: Any, tmp_path: Path) -> None:
    write(tmp_path / name)
    with pytest.raises(ArchiveError, match=r"is not a model archive|can't be unpacked"):
        unpack(tmp_path / name, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {name}


def test_nothing_is_unpacked_over_other_files(parts: dict[str, Any], tmp_path: Path) -> None:
    archive = build_archive("m", **parts)
    (tmp_path / "out").mkdir()
    unpack(archive, tmp_path / "out")
    with pytest.raises(ArchiveError, match="is not empty"):
        unpack(archive, tmp_path / "out")


def test_a_new_version_copies_all_files_and_leaves_the_old_one_as_it_is(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for name, content in {"h.py": HANDLER, "s.yaml": "a: 1", "weights": "x" * 2_000_000}.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("a = 1")
    extra = [tmp_path / "weights", tmp_path / "tools"]
    lay_out(old, handler=tmp_path / "h.py", config_file=tmp_path / "s.yaml", extra_files=extra)
    before = contents(old)
    (tmp_path / "edited.py").write_text(HANDLER + "# edited\n")
    (tmp_path / "s.yaml").write_text("a: 2")
    (tmp_path / "tools" / "__init__.py").write_text("a = 2")
    (tmp_path / "w2").write_text("new weights")
    (tmp_path / "m.py").write_text("class Net:\n    pass\n")
    edited: Any = {"handler": tmp_path / "edited.py", "config_file": tmp_path / "s.yaml"}
    edited |= {"serialized_file": tmp_path / "w2", "model_file": tmp_path / "m.py"}
    new_version(old, new, version="1.1", **edited, extra_files=[tmp_path / "tools"])
    assert contents(old) == before
    assert read_settings(new) == {"a": 2}
    model = read_manifest(new)["model"]
    assert model == {
        "modelName": "model",
        "modelVersion": "1.1",
        "handler": "edited.py",
        "modelFile": "m.py",
        "serializedFile": "w2",
        "configFile": "s.yaml",
    }
    assert (new / "w2").read_text() == "new weights"
    assert not any((new / name).samefile(old / name) for name in ("weights", "h.py"))
    assert (new / "tools" / "__init__.py").read_text() == "a = 2"
    for change in ({"handler": "gone.py"}, {"extra_files": ["gone"]}):
        with pytest.raises(ArchiveError, match="There is no file gone"):
            new_version(old, tmp_path / "third", version="1.2", **change)
    assert not (tmp_path / "third").exists()


# The reader's own model

OTHER_MODEL = handlers.IMAGE_MODEL.replace("144, 5", "144, 6")
TWO_CLASSES = handlers.IMAGE_MODEL + "\n\nclass Other(nn.Module):\n    pass\n"
WITH_ARGUMENTS = handlers.IMAGE_MODEL.replace("__init__(self):", "__init__(self, size, *, depth, bias=True):")


@pytest.fixture
def image(tmp_path: Path) -> dict[str, Any]:
    """The arguments for a plain torch model with a handler that is a BaseHandler."""
    (tmp_path / "image.py").write_text(handlers.IMAGE)
    model_file, weights = handlers.write_model(tmp_path, "image", handlers.IMAGE_MODEL)
    return {"handler": tmp_path / "image.py", "model_file": model_file, "serialized_file": weights}


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (TWO_CLASSES, "exactly one class, the model; it defines Net, Other"),
        ("from torch.nn import Linear as Net\n", "it defines none"),
        ("class Net(:\n", "is not Python"),
        (WITH_ARGUMENTS, "its __init__ needs size, depth"),
        (OTHER_MODEL, "can't load image_net.pt into the class of image_net.py: RuntimeError.*size mismatch"),
    ],
)
def test_a_model_file_that_torchserve_can_not_use(
    source: str, sentence: str, image: dict[str, Any], tmp_path: Path
) -> None:
    image["model_file"].write_text(source)
    with pytest.raises(ArchiveError, match=sentence):
        build_archive("m", **image, export_path=tmp_path / "store")
    assert not [*tmp_path.glob("store/*")]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"serialized_file": None}, "needs a model, but none is given"),
        ({"model_file": None}, "holds weights without their architecture"),
        (
            {"model_file": None, "serialized_file": "w.onnx"},
            "loads an ONNX file and calls it as a torch module",
        ),
        ({"model_file": None, "serialized_file": "w.pt2"}, "a file whose initialize.. loads .pt2"),
        ({"serialized_file": "w.safetensors"}, "torch.load, which does not read w.safetensors"),
        ({"handler": "text_classifier"}, "add source_vocab.pt to extra_files"),
        ({"extra_files": ["index_to_name.json"]}, "sets topk = 2"),
        ({"handler": "vllm_handler"}, "pip install vllm"),
    ],
)
def test_what_a_handler_of_torchserve_needs(
    changes: dict[str, Any],
    sentence: str,
    image: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("w.onnx", "w.pt2"):
        (tmp_path / name).write_bytes(b"weights")
    (tmp_path / "w.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "index_to_name.json").write_text('{"0": "a", "1": "b"}')
    with pytest.raises(ArchiveError, match=sentence):
        build_archive("m", **{**image, "handler": "image_classifier", **changes}, export_path="store")


def test_a_torchscript_that_is_cut_off_is_refused(image: dict[str, Any], tmp_path: Path) -> None:
    image["serialized_file"].write_bytes(image["serialized_file"].read_bytes()[:500])
    with pytest.raises(ArchiveError, match=r"can't load image_net\.pt: .* torch\.jit\.script"):
        build_archive("m", **{**image, "model_file": None}, export_path=tmp_path / "store")


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ("image_net.pt", "image_net.pt holds weights without their architecture. Give the model's class too"),
        ("net.pt2", "BaseHandler loads .pt files, and net.pt2 is none.*whose initialize.. loads .pt2"),
    ],
)
def test_what_a_base_handler_can_not_load_alone_is_refused(
    weights: str, sentence: str, image: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "net.pt2").write_bytes(image["serialized_file"].read_bytes())
    arguments = {"handler": image["handler"], "serialized_file": tmp_path / weights}
    with pytest.raises(ArchiveError, match=sentence):
        build_archive("m", **arguments, export_path=tmp_path / "store")


def test_the_readers_own_model_is_served_as_run_handler_says(
    image: dict[str, Any], server: TorchServe, tmp_path: Path
) -> None:
    """A state_dict with its class and a package of the handler's, TorchScript, and a handler by name."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("def best(row):\n    return int(row.argmax())\n")
    packaged = tmp_path / "packaged.py"
    packaged.write_text(
        "from tools import best\n"
        + handlers.IMAGE.replace("output.argmax(dim=1).tolist()", "[*map(best, output)]")
    )
    namespace: dict[str, Any] = {}
    exec(handlers.IMAGE_MODEL.replace("super()", "super(Net, self)"), namespace)
    net = namespace["Net"]()
    net.load_state_dict(torch.load(image["serialized_file"]))
    traced: Any = torch.jit.trace(net, torch.zeros(1, 1, 8, 8))  # type: ignore[no-untyped-call]
    traced.save(tmp_path / "script.pt")
    (model_file, weights), extra = handlers.write_classifier(tmp_path)
    picture = bytes(range(64))
    cases: list[tuple[str, dict[str, Any], bytes]] = [
        ("plain", {**image, "handler": packaged, "extra_files": [tmp_path / "tools"]}, picture),
        ("script", {"handler": image["handler"], "serialized_file": tmp_path / "script.pt"}, picture),
        (
            "words",
            {
                "handler": "text_classifier",
                "model_file": model_file,
                "serialized_file": weights,
                "extra_files": extra,
            },
            b"good day",
        ),
    ]
    for name, arguments, body in cases:
        folder = build_archive(name, **arguments, export_path=tmp_path / "store", archive_format="no-archive")
        server.management.register(folder.absolute(), name)
        try:
            answer = server.inference.predict(name, body)
            assert (200, answer) == run_handler(requests=[{"body": bytearray(body)}], **arguments)[0], name
        finally:
            server.management.unregister(name)
    assert set(answer) == {"Bad", "Good"}


# Copies, and files that can't be copied


WRITES = """
from pathlib import Path

def handle(data, context):
    folder = Path(context.system_properties["model_dir"])
    if data is None:
        for file in folder.rglob("*.bin"):
            file.write_bytes(b"converted")
        return None
    return [(folder / "large.bin").read_text()] * len(data)
"""


def test_a_handler_that_writes_into_its_folder_changes_no_file_of_the_author(tmp_path: Path) -> None:
    """Large files and small ones, files in folders and behind links, on this disk and on another one."""
    (tmp_path / "h.py").write_text(WRITES)
    (tmp_path / "tools").mkdir()
    originals = [tmp_path / name for name in ("large.bin", "small.bin", "tools/large.bin", "tools/a.bin")]
    for file in originals:
        file.write_bytes(b"o" * (10 if "small" in file.name else 2_000_000))
    originals[0].chmod(0o640)
    (tmp_path / "tools" / "link.bin").symlink_to(originals[3])
    files: dict[str, Any] = {"handler": tmp_path / "h.py"}
    files["extra_files"] = [tmp_path / name for name in ("large.bin", "small.bin", "tools")]
    assert run_handler(requests=[{"body": "a"}], **files)[0].body == "converted"
    assert str(check_handler(samples=["a"], **files))
    lay_out(tmp_path / "here", **files)
    for file in (tmp_path / "here").rglob("*.bin"):
        assert not file.is_symlink() and file.stat().st_nlink == 1
    assert (tmp_path / "here" / "large.bin").stat().st_mode & 0o777 == 0o640
    assert all(set(file.read_bytes()) == {ord("o")} for file in originals)


def test_a_model_folder_is_packed_with_its_folders(parts: dict[str, Any], tmp_path: Path) -> None:
    """As sentence-transformers writes it; what torch-model-archiver leaves out stays out everywhere."""
    folder = parts["model_dir"]
    for name in ("modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors", ".cache/a"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(WEIGHTS if name.endswith("s") else b"{}")
    unpack(build_archive("m", **parts), tmp_path / "unpacked")
    assert {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"} <= set(
        contents(tmp_path / "unpacked")
    )
    assert not (tmp_path / "unpacked" / ".cache").exists()


def circle(source: Path) -> None:
    (source / "tools" / "again").symlink_to(source / "tools")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (circle, "again is a link to a folder that it lies in itself"),
        (
            lambda source: (source / "tools" / "a").symlink_to("gone"),
            "a is a link to gone, which is not there",
        ),
        (lambda source: (source / "tools" / "a").symlink_to("a"), r"tools/a (is a link to a|can't be read)"),
        (lambda source: os.mkfifo(source / "tools" / "pipe"), "pipe is neither a file nor a folder"),
        (
            lambda source: (source / "tools" / "words.py").chmod(0),
            "words.py can't be read: Permission denied",
        ),
        (lambda source: (source / "tools").chmod(0), "tools.* can't be read: Permission denied"),
        (lambda source: (source / "model" / "config.json").chmod(0), "config.json can't be read: Permission"),
    ],
)
def test_what_can_not_be_copied_names_its_cause_everywhere(
    damage: Callable[[Path], None], sentence: str, parts: dict[str, Any], nobody: Path
) -> None:
    source = Path(parts["handler"]).parent
    damage(source)
    with pytest.raises(ArchiveError, match=sentence):
        build_archive("m", **parts)
    del parts["export_path"], parts["requirements_file"]
    with pytest.raises(ArchiveError, match=sentence):
        run_handler(requests=[{"body": "a"}], **parts)
    with pytest.raises(ArchiveError, match=sentence):
        check_handler(samples=["a"], **parts)
    (source / "tools").chmod(0o700)


@pytest.fixture
def nobody(tmp_path: Path) -> Iterator[Path]:
    """Gives up root's right to read every file, if the test runs as root."""
    if os.geteuid() != 0:
        yield tmp_path
        return
    for folder in (tmp_path, *tmp_path.parents):
        if folder.name.startswith(("t-", "pytest-", "popen-", "test_")) or folder == tmp_path:
            folder.chmod(0o755)
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, 65534, 65534)
    old = tempfile.tempdir
    tempfile.tempdir = str(tmp_path)
    os.seteuid(65534)
    try:
        yield tmp_path
    finally:
        os.seteuid(0)
        tempfile.tempdir = old


@pytest.mark.parametrize("store", ["tools", "tools/store", "model", "model/store"])
def test_a_store_inside_a_folder_that_is_packed_is_refused(store: str, parts: dict[str, Any]) -> None:
    parts["export_path"] = Path(parts["handler"]).parent / store
    with pytest.raises(ArchiveError, match=r"would hold itself: export_path .* Give an export_path outside"):
        build_archive("m", **parts)


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "No space left on device. Free some space, or name a folder on another disk"),
        (errno.EROFS, "Read-only file system. Name a folder on a disk that can be written to"),
        (errno.EACCES, "Permission denied. Name a folder that you may write to"),
    ],
)
def test_a_folder_that_can_not_be_written_to_names_its_cause(
    number: int, sentence: str, parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shutil, "copyfile", fail)
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    with pytest.raises(ArchiveError, match=f"The archive can't be written to .*store: {sentence}"):
        build_archive("m", **parts)
    del parts["export_path"], parts["requirements_file"]
    with pytest.raises(ArchiveError, match=f"can't be written to .*: {sentence}"):
        run_handler(requests=[{"body": "a"}], **parts)
