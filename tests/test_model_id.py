"""`make run MODEL_ID=…`: the course with other classifiers than its own, from folders too."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from chapters import past_runs
from course import label_map
from run import absolute

from tests.conftest import ROOT
from tests.course_copy import run_chapters
from tests.models import tiny_model
from tests.test_book import outputs, write
from tests.test_book import run as run_course
from tutorial_lib import ExportError, export_onnx

COURSE_MAP = ROOT / "index_to_name.json"
MOODS = {0: "NEG", 1: "NEU", 2: "POS"}
STARS = {i: f"{i + 1} stars" for i in range(5)}


def configured(folder: Path, **config: Any) -> Path:
    """A folder with nothing but the config of a model with these settings."""
    from transformers import BertConfig

    BertConfig(**config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "labels",
    [
        MOODS,
        {0: "Negative", 1: "Neutral", 2: "Positive"},
        {0: "negative", 1: "neutral", 2: "positive"},
    ],
)
def test_the_course_s_label_map_is_taken_where_it_names_the_model_s_own_labels(
    labels: dict[int, str], tmp_path: Path
) -> None:
    assert label_map(configured(tmp_path / "model", id2label=labels)).resolve() == COURSE_MAP
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_labels": 2}, ["LABEL_0", "LABEL_1"]),  # config.json then has no id2label at all
        ({"num_labels": 3}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ({"id2label": {0: "POS", 1: "NEU", 2: "NEG"}}, ["POS", "NEU", "NEG"]),
        ({"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}, None),
        ({"id2label": {i: f"größer als {i}" for i in range(11)}}, None),
        ({"num_labels": 1}, ["LABEL_0"]),
    ],
)
def test_another_model_s_label_map_is_made_of_its_own_labels(
    config: dict[str, Any], expected: list[str] | None, tmp_path: Path
) -> None:
    made = label_map(configured(tmp_path / "model", **config))
    assert made.name == COURSE_MAP.name and made.parent.parent == tmp_path
    expected = expected or list(config["id2label"].values())
    assert json.loads(made.read_text()) == {str(i): name for i, name in enumerate(expected)}
    assert list(json.loads(made.read_text())) == [str(i) for i in range(len(expected))]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]


def test_a_folder_may_be_given_relative_to_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chapters run in another folder."""
    write(tmp_path / "chapters", "00_look", ("parameters", 'MODEL_ID = "embedded"'), ("", "print(MODEL_ID)"))
    model = configured(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    done = run_course(tmp_path / "chapters", "--model-id", "mine")
    assert done.returncode == 0, done.stderr
    assert f"{model}\\n" in outputs(tmp_path)["00_look"]


@pytest.mark.parametrize("name", ["embedded", "owner/model@v1"])
def test_other_names_are_taken_as_they_are(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "embedded").mkdir()  # the course's own model wins
    monkeypatch.chdir(tmp_path)
    assert absolute(name) == name


def test_chapters_run_again_where_the_folder_s_model_was_trained_again(tmp_path: Path) -> None:
    write(tmp_path / "chapters", "00_look", ("parameters", 'MODEL_ID = "embedded"'))
    (tmp_path / "executed").mkdir()
    parameters = {"MODEL_ID": str(configured(tmp_path / "mine"))}
    notebook = nbformat.read(tmp_path / "chapters/00_look.ipynb", as_version=4)
    notebook.metadata["ran_with"] = parameters
    ran, trained = tmp_path / "executed/00_look.ipynb", tmp_path / "mine/config.json"
    nbformat.write(notebook, ran)
    later = time.time() + 1000  # than any change of the course's files
    os.utime(ran, (later, later))
    assert list(past_runs(tmp_path / "chapters", ran.parent, parameters)) == [ran.name]
    os.utime(trained, (later + 1, later + 1))
    assert past_runs(tmp_path / "chapters", ran.parent, parameters) == {}


def without_padding(folder: Path) -> Path:
    """GPT-2 as it is published: neither its config nor its tokenizer has a token to pad with."""
    tiny_model(folder, "gpt2", num_labels=3, pad_token_id=None, id2label=MOODS)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["pad_token"]
    file.write_text(json.dumps(settings))
    return folder


def test_a_model_that_can_t_pad_has_no_onnx_form(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no token to pad with"):
        export_onnx(without_padding(tmp_path / "model"))


# `make models` runs these; by hand all others too, with COURSE_CHAPTERS="00 06 07 …".
CHAPTERS = os.environ.get("COURSE_CHAPTERS", "01 02 03 04 05")
MOOD_OF_TWO = {0: "bad", 1: "good"}
OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a two-label BERT": ("bert", {"id2label": MOOD_OF_TWO}, "bad|good"),
    "a BERT with default labels": ("bert", {"num_labels": 2}, "LABEL_[01]"),
    "a five-label DistilBERT": ("distilbert", {"id2label": STARS}, r"\d stars"),
    "a RoBERTa with the course's labels": ("roberta", {"id2label": MOODS}, "Negative|Neutral|Positive"),
}


@pytest.mark.models
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", OTHERS)
def test_chapters_run_with_another_model(kind: str, tmp_path: Path) -> None:
    architecture, config, labels = OTHERS[kind]
    tiny_model(tmp_path / "mine", architecture, **config)
    first = run_chapters(CHAPTERS, tmp_path / "course", tmp_path / "mine", COURSE_QUICK="1")
    assert re.search(labels, str([cell.get("outputs") for cell in first.cells]))


@pytest.mark.models
def test_the_first_chapter_runs_with_a_model_that_can_t_pad(tmp_path: Path) -> None:
    model = without_padding(tmp_path / "mine")
    export = run_chapters("01", tmp_path / "course", model, COURSE_QUICK="1")
    assert "Negative" in str([cell.get("outputs") for cell in export.cells])
