"""export_model with folders that hold something else than a whole text classifier of transformers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import tiny_model
from tutorial_lib import ExportError, export_model

pytestmark = pytest.mark.faults


def set_config(folder: Path, name: str = "config.json", **values: Any) -> None:
    """Sets values of a JSON file; None removes one."""
    file = folder / name
    found = {**(json.loads(file.read_text()) if file.is_file() else {}), **values}
    file.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def change_tensors(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Adds tensors to the weights; None removes one. A dot of a name is written __."""
    found: dict[str, Any] = load_file(folder / "model.safetensors")
    found |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    kept = {name: tensor for name, tensor in found.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def add_head(folder: Path, auto_class: str) -> None:
    """Adds the tensors of the same model with another head, under the names that they have there."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    other = getattr(transformers, auto_class).from_config(config)
    other.save_pretrained(folder / "other")
    prefix = f"{other.base_model_prefix}." if auto_class == "AutoModel" else ""
    tensors = {
        f"{prefix}{name}": value for name, value in load_file(folder / "other/model.safetensors").items()
    }
    save_file(
        {**tensors, **load_file(folder / "model.safetensors")}, folder / "model.safetensors", {"format": "pt"}
    )
    shutil.rmtree(folder / "other")


def with_head(folder: Path, architecture: str, auto_class: str, **config: Any) -> Path:
    """A tiny model with the head of another task, with a classifier's tokenizer."""
    import transformers

    tiny_model(folder, architecture)
    settings = transformers.AutoConfig.from_pretrained(folder, **config)
    getattr(transformers, auto_class).from_config(settings).save_pretrained(folder)
    return folder


def refusal(source: Path | str, out: Path) -> str:
    """Returns the message of an export that must be refused, and leave nothing behind."""
    with pytest.raises(ExportError) as error:
        export_model(source, out)
    assert not out.exists() and not [*out.parent.glob(f".{out.name}*")]
    return str(error.value)


# Other classes


@pytest.mark.parametrize("named", ["its own", "a classifier of transformers", "none"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "llama"])
def test_a_layer_of_ones_own_is_not_dropped(architecture: str, named: str, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "own", architecture)
    change_tensors(folder, bottleneck__weight=torch.zeros(4, 4))
    if named != "a classifier of transformers":
        set_config(folder, architectures=["BottleneckClassifier"] if named == "its own" else None)
    said = refusal(folder, tmp_path / "out")
    assert ("BottleneckClassifier" if named == "its own" else "bottleneck.weight") in said
    assert "handler of your own" in said


OTHER_TASKS = [
    *(
        (name, "AutoModelForTokenClassification")
        for name in ("bert", "roberta", "distilbert", "xlnet", "gpt2")
    ),
    *((name, "AutoModelForTokenClassification") for name in ("llama", "qwen2", "t5", "albert", "electra")),
    *((name, "AutoModelForTokenClassification") for name in ("deberta-v2", "modernbert", "gemma")),
    *((name, "AutoModelForMaskedLM") for name in ("bert", "roberta", "distilbert", "albert", "electra")),
    *((name, "AutoModelForCausalLM") for name in ("gpt2", "llama", "qwen2")),
    *((name, "AutoModelForQuestionAnswering") for name in ("bert", "modernbert", "t5", "llama")),
    *((name, "AutoModelForMultipleChoice") for name in ("bert", "xlnet")),
    *((name, "AutoModel") for name in ("bert", "roberta", "deberta-v2", "llama")),
    ("t5", "AutoModelForSeq2SeqLM"),
    ("bert", "AutoModelForNextSentencePrediction"),
]


@pytest.mark.parametrize(("architecture", "auto_class"), OTHER_TASKS)
def test_the_model_of_another_task_is_no_classifier(
    architecture: str, auto_class: str, tmp_path: Path
) -> None:
    """With its class in config.json, and without: then by the tensors, which differ in all but ModernBERT."""
    folder = with_head(tmp_path / "other", architecture, auto_class)
    (named,) = json.loads((folder / "config.json").read_text())["architectures"]
    said = refusal(folder, tmp_path / "out")
    assert f"The model is a {named}" in said and "Fine-tune it as one" in said
    if architecture != "modernbert":
        set_config(folder, architectures=None)
        said = refusal(folder, tmp_path / "out")
        assert "lack" in said or "no place for" in said or "other shapes" in said


def test_a_choice_of_one_label_has_a_classifiers_tensors_and_another_class(tmp_path: Path) -> None:
    folder = with_head(tmp_path / "other", "bert", "AutoModelForMultipleChoice", num_labels=1)
    assert "The model is a BertForMultipleChoice" in refusal(folder, tmp_path / "out")


def test_a_class_of_ones_own_that_adds_nothing_may_be_named_as_its_parent(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "own", "bert")
    set_config(folder, architectures=["BertWithAnotherLoss"])
    assert "name the class of transformers there" in refusal(folder, tmp_path / "out")
    set_config(folder, architectures=["BertForSequenceClassification"])
    assert export_model(folder, tmp_path / "out").is_dir()


@pytest.mark.parametrize("labels", [1, 2, 5])
def test_another_number_of_labels_than_the_weights_have(labels: int, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", "bert", num_labels=3)
    names = {str(index): f"label {index}" for index in range(labels)}
    set_config(folder, id2label=names, label2id={name: int(index) for index, name in names.items()})
    said = refusal(folder, tmp_path / "out")
    assert f"classifier.bias [3] for [{labels}]" in said and "id2label" in said


HARMLESS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a pooler that RoBERTa's classifier lacks": ("roberta", lambda folder: add_head(folder, "AutoModel")),
    "BERT's heads of pretraining": ("bert", lambda folder: add_head(folder, "AutoModelForPreTraining")),
    "RoBERTa's masked words": ("roberta", lambda folder: add_head(folder, "AutoModelForMaskedLM")),
    "ELECTRA's discriminator": ("electra", lambda folder: add_head(folder, "AutoModelForPreTraining")),
    "Llama's next word": ("llama", lambda folder: add_head(folder, "AutoModelForCausalLM")),
    "T5's next word": ("t5", lambda folder: change_tensors(folder, lm_head__weight=torch.zeros(4, 4))),
    "positions, as older versions saved them": (
        "bert",
        lambda folder: change_tensors(folder, bert__embeddings__position_ids=torch.arange(8)[None]),
    ),
    "token types, as older versions saved them": (
        "roberta",
        lambda folder: change_tensors(folder, roberta__embeddings__token_type_ids=torch.zeros(1, 8)),
    ),
    "GPT-2's masks, as older versions saved them": (
        "gpt2",
        lambda folder: change_tensors(
            folder,
            transformer__h__0__attn__bias=torch.ones(4),
            transformer__h__0__attn__masked_bias=torch.ones(1),
        ),
    ),
    "Llama's angles, as older versions saved them": (
        "llama",
        lambda folder: change_tensors(
            folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4)
        ),
    ),
    "no class in config.json": ("bert", lambda folder: set_config(folder, architectures=None)),
    "the class of a model of the same kind": (
        "xlm-roberta",
        lambda folder: set_config(folder, architectures=["RobertaForSequenceClassification"]),
    ),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_what_pretraining_left_is_no_reason_to_refuse_a_classifier(what: str, tmp_path: Path) -> None:
    architecture, change = HARMLESS[what]
    folder = tiny_model(tmp_path / "model", architecture)
    wanted = load_file(folder / "model.safetensors")
    change(folder)
    exported = load_file(export_model(folder, tmp_path / "out") / "model.safetensors")
    assert all(torch.equal(exported[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("architecture", ["bert", "llama", "t5"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", architecture)
    half = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(half, folder / "model.safetensors", {"format": "pt"})
    set_config(folder, dtype=str(dtype).removeprefix("torch."))
    exported = load_file(export_model(folder, tmp_path / "out") / "model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in exported.values())
    assert all(torch.equal(exported[name], tensor.float()) for name, tensor in half.items())


# Other folders


def _touch(*names: str) -> Callable[[Path], None]:
    """Makes a folder with these files, which hold an empty JSON object."""

    def make(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")

    return make


def _classifier(*and_names: str, without: str = "") -> Callable[[Path], None]:
    """Makes a classifier with more files, and without one of its own."""

    def make(folder: Path) -> None:
        tiny_model(folder, "bert")
        _touch(*and_names)(folder)
        if without:
            (folder / without).unlink()

    return make


def _config(text: str) -> Callable[[Path], None]:
    """Makes a classifier with this text as its config."""

    def make(folder: Path) -> None:
        (tiny_model(folder, "bert") / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))

    return make


FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "an adapter": (_touch("adapter_config.json", "adapter_model.safetensors"), "merge_and_unload"),
    "an adapter beside its model": (_classifier("adapter_config.json"), "merge_and_unload"),
    "a pipeline of diffusers": (_touch("model_index.json", "unet/config.json"), "diffusers"),
    "sentence-transformers": (_touch("modules.json", "0_Transformer/config.json"), "sentence-transformers"),
    "GGUF": (_touch("model-q4.gguf", "README.md"), "GGUF"),
    "GGUF with a config": (_touch("model-q4.gguf", "config.json"), "GGUF"),
    "ONNX": (_classifier("model.onnx", without="model.safetensors"), "ONNX"),
    "ONNX as optimum exports it": (_touch("config.json", "onnx/model.onnx"), "ONNX"),
    "TensorFlow": (_touch("config.json", "tf_model.h5"), "from_tf"),
    "Flax": (_touch("config.json", "flax_model.msgpack"), "from_flax"),
    "a tokenizer": (_classifier(without="config.json"), "config.json"),
    "a tokenizer alone": (_touch("tokenizer.json", "tokenizer_config.json"), "It holds a tokenizer"),
    "a config alone": (_touch("config.json"), "no weights"),
    "nothing": (Path.mkdir, "no config.json"),
    "an empty config": (_touch("config.json", "model.safetensors"), "does not load"),
    "a config that is a list": (_config("[]"), "config.json is no JSON object"),
    "a config that is cut": (_config("{"), "config.json can't be read"),
    "a config that is no text": (_config("\x00\ud800"), "config.json can't be read"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_each_kind_of_folder_has_its_sentence(kind: str, tmp_path: Path) -> None:
    make, sentence = FOLDERS[kind]
    make(tmp_path / "folder")
    said = refusal(tmp_path / "folder", tmp_path / "out")
    assert sentence in said and said.rstrip().endswith((".", ")")), said


def test_embeddings_of_sentence_transformers_are_no_classifier(tmp_path: Path) -> None:
    folder = with_head(tmp_path / "other", "bert", "AutoModel")
    (folder / "modules.json").write_text("[]")
    said = refusal(folder, tmp_path / "out")
    assert "is a BertModel" in said and "sentence-transformers" in said


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tiny_model(tmp_path / "model", "bert") / "model.safetensors"
    assert "is a file. Name the folder" in refusal(file, tmp_path / "out")


@pytest.mark.parametrize("config", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("known", [True, False])
def test_code_that_a_model_brings_is_not_run_and_not_asked_about(
    config: str, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model(tmp_path / "model", "bert")
    code = f"from pathlib import Path\nPath({str(tmp_path / 'was_run')!r}).write_text('')\n"
    (folder / "own.py").write_text(code + "class Own: ...\n")
    classes = {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.Own"}
    set_config(
        folder, config, auto_map=classes if config == "config.json" else {"AutoTokenizer": ["own.Own", None]}
    )
    if not known:
        set_config(folder, model_type="own")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked on the terminal"))
    said = refusal(folder, tmp_path / "out")
    assert "own" in said and not (tmp_path / "was_run").exists()
    if known or config == "config.json":
        assert "auto_map" in said and "handler of your own" in said


# What the machine refuses


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors"])
@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="Windows has no other user to be")
def test_a_file_of_another_user_is_said_by_name(name: str, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", "bert")
    for file in folder.iterdir():  # save_pretrained gives the weights to their owner alone
        file.chmod(0 if file.name == name else 0o644)
    with _nobody(tmp_path):
        said = refusal(folder, tmp_path / "out")
    assert f"{name} can't be read: Permission denied." in said


class _nobody:
    """Runs a block without root's rights to read everything, in a folder that all may enter."""

    def __init__(self, folder: Path) -> None:
        self.parents = [folder, *folder.parents][:4]

    def __enter__(self) -> None:
        if os.geteuid() == 0:
            for parent in self.parents:
                parent.chmod(0o755)
            os.seteuid(65534)

    def __exit__(self, *_: object) -> None:
        if os.getuid() == 0:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="Windows has no other user to be")
def test_a_folder_of_another_user_is_said_by_name(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "closed" / "model", "bert")
    (tmp_path / "closed").chmod(0)
    with _nobody(tmp_path):
        said = refusal(folder, tmp_path / "out")
    assert f"{folder} can't be read: Permission denied." in said


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_full_disk_is_said(model_dir: Path, tmp_path: Path) -> None:
    """A limit on a file's size, which every user may set, stands for it."""
    code = (
        "import resource, signal, sys; from tutorial_lib import ExportError, export_model\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))\n"
        "try: export_model(*sys.argv[1:])\n"
        "except ExportError as error: print(error)"
    )
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", code, model_dir, out], capture_output=True, text=True)
    assert f"The model can't be written to {out}: " in done.stdout and "File too large" in done.stdout, done
    assert [*tmp_path.iterdir()] == []
