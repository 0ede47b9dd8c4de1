"""handler.py with models of many architectures and heads, against a direct pass of each text alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.models import ARCHITECTURES, TEXTS, tiny_model
from tutorial_lib import ExportError, build_archive, export_model
from tutorial_lib.testing import HandlerAnswer, run_handler

pytestmark = pytest.mark.models


def logits(folder: Path, texts: list[str]) -> torch.Tensor:
    """Of each text alone, [texts, labels]."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        rows = [tokenizer(text, return_tensors="pt", truncation=True, max_length=62) for text in texts]
        return torch.cat([model(**{k: v for k, v in row.items() if "type" not in k}).logits for row in rows])


def ask(folder: Path, bodies: list[Any], **files: Any) -> list[HandlerAnswer]:
    return run_handler(ROOT / "handler.py", [{"body": body} for body in bodies], model_dir=folder, **files)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "nystromformer"])
def test_each_architecture_answers_as_a_direct_pass_alone_and_in_a_batch(
    architecture: str, tmp_path: Path
) -> None:
    folder = export_model(tiny_model(tmp_path / "saved", architecture, num_labels=3), tmp_path / "exported")
    expected = logits(folder, TEXTS).softmax(dim=-1)
    (together,) = ask(folder, [{"input": TEXTS, "scores": True}])
    apart = ask(folder, [{"input": [text], "scores": True} for text in TEXTS])
    for answer in (together.body, [answer.body[0] for answer in apart]):
        assert [item["label"] for item in answer] == [f"LABEL_{row.argmax()}" for row in expected]
        found = torch.tensor([item["score"] for item in answer])
        assert torch.allclose(found, expected.max(dim=-1).values, atol=1e-4), (found, expected)


def test_a_regression_answers_its_number(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "bert", num_labels=1)
    plain, with_scores = ask(folder, [{"input": TEXTS}, {"input": TEXTS, "scores": True}])
    expected = logits(folder, TEXTS)[:, 0].tolist()
    assert plain.body == pytest.approx(expected, abs=1e-4)
    assert with_scores.body == [
        {"label": "LABEL_0", "score": pytest.approx(number, abs=1e-4)} for number in expected
    ]


def test_a_regression_with_several_outputs_answers_a_list_for_each_text(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "bert", num_labels=2, problem_type="regression")
    (answer,) = ask(folder, [{"input": TEXTS}])
    assert answer.body == [pytest.approx(row, abs=1e-4) for row in logits(folder, TEXTS).tolist()]


@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_a_multi_label_model_answers_the_labels_over_the_threshold(threshold: float, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", "bert", num_labels=4, problem_type="multi_label_classification")
    config = tmp_path / "config.yaml"
    config.write_text(f"handler:\n  threshold: {threshold}\n")
    plain, with_scores = ask(folder, [{"input": TEXTS}, {"input": TEXTS, "scores": True}], config_file=config)
    scores = logits(folder, TEXTS).sigmoid()
    assert plain.body == [[f"LABEL_{i}" for i in range(4) if row[i] >= threshold] for row in scores]
    assert [[item["label"] for item in text] for text in with_scores.body] == plain.body
    assert all(item["score"] >= threshold for text in with_scores.body for item in text)
    assert 0 < sum(map(len, plain.body)) < 4 * len(TEXTS)


def test_one_label_that_is_always_certain_is_refused(tmp_path: Path) -> None:
    """transformers refuses to make such a config, and older versions wrote some."""
    folder = tiny_model(tmp_path, "bert", num_labels=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": "single_label_classification"}))
    with pytest.raises(Exception, match="problem_type"):
        ask(folder, [{"input": TEXTS}])


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "xlnet"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_answer_on_whichever_side_the_tokenizer_puts_it(
    side: str, architecture: str, tmp_path: Path
) -> None:
    folder = tiny_model(tmp_path, architecture, padding_side=side)
    (answer,) = ask(folder, [{"input": TEXTS}])
    assert answer.body == [f"LABEL_{row.argmax()}" for row in logits(folder, TEXTS)]


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bert"])
def test_a_model_without_a_pad_token_answers_each_text_by_itself(
    architecture: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_model(tmp_path, architecture, pad_token_id=None)
    (answer,) = ask(folder, [{"input": TEXTS}])
    assert answer.body == [f"LABEL_{row.argmax()}" for row in logits(folder, TEXTS)]
    assert "no pad_token_id" in caplog.text


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("roberta", {"pad_token_id": None}),
        ("gpt2", {"n_positions": 1}),
        ("bert", {"vocab_size": 5}),
        ("nystromformer", {"num_landmarks": 8, "segment_means_seq_len": 64}),  # wants texts of that length
    ],
)
def test_a_model_that_can_compute_no_text_is_refused(
    architecture: str, config: dict[str, Any], tmp_path: Path
) -> None:
    folder = tiny_model(tmp_path / "saved", architecture, **config)
    with pytest.raises(RuntimeError, match="can't compute a text"):
        ask(folder, [{"input": TEXTS}])
    with pytest.raises(ExportError):
        export_model(folder, tmp_path / "exported")


# A text that only some models or tokenizers can't take, and the status of its request.
HARD_TEXTS = [
    ("half a surrogate pair", "x\ud83d", {400}),
    ("an empty text", "", {200, 400}),
    ("end tokens in the text", "one <eos> two <eos>", {200}),
    ("padding in the text", "one <pad> two <pad>", {200}),
    ("nothing but padding", "<pad>", {200}),
    ("longer than the model's positions", "word " * 2000, {200}),
    ("one word of 20,000 letters", "a" * 20_000, {200}),
    ("20,000 characters with no space", "漢字" * 10_000, {200}),
    ("a NUL", "a\x00b", {200}),
]


@pytest.mark.parametrize("architecture", ["bert", "bart", "gpt2", "t5", "xlnet"])
def test_no_text_costs_its_neighbours_their_answers(architecture: str, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, architecture)
    good = {"input": TEXTS}
    (right,) = ask(folder, [good])
    bodies = [body for _, text, _ in HARD_TEXTS for body in (good, {"input": [text]})]
    answers = ask(folder, bodies)
    assert [answer.body for answer in answers[::2]] == [right.body] * len(HARD_TEXTS)
    for (name, _, statuses), answer in zip(HARD_TEXTS, answers[1::2], strict=True):
        assert answer.status in statuses, (name, answer)
        assert answer.status == 200 or answer.body["message"].endswith("."), (name, answer)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("bert"), "bert")


any_character = st.characters(exclude_categories=())  # halves of surrogate pairs too


@settings(max_examples=8, deadline=None)
@given(st.lists(st.lists(st.text(any_character, max_size=40), max_size=3), min_size=1, max_size=8))
def test_no_texts_whatever_turn_a_neighbours_answer(bert: Path, requests: list[list[str]]) -> None:
    good = {"input": TEXTS}
    answers = ask(bert, [good, *(body for texts in requests for body in ({"input": texts}, good))])
    right = [f"LABEL_{row.argmax()}" for row in logits(bert, TEXTS)]
    assert [answer.body for answer in answers[::2]] == [right] * (len(requests) + 1)
    for texts, answer in zip(requests, answers[1::2], strict=True):
        assert answer.status == 400 or len(answer.body) == len(texts)
        assert answer.status in (200, 400)


def test_what_the_model_cannot_compute_is_that_requests_own_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_model(tmp_path, "bert")
    weights = load_file(folder / "model.safetensors")
    tokens = _ids(folder, "ok")
    weights["bert.embeddings.word_embeddings.weight"][tokens[0]] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    good, bad = ask(folder, [{"input": ["I love this phone"]}, {"input": ["I love this phone", "ok"]}])
    assert (good.status, bad.status) == (200, 500)
    assert bad.body["message"].startswith("The model gives no number for a text.")


def _ids(folder: Path, text: str) -> list[int]:
    from transformers import AutoTokenizer

    ids: list[int] = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    return ids


# Folders that are not what a handler expects: refused in a sentence, or served


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "saved", "bert", tokenizer=False)
    with pytest.raises(ExportError, match="tokenizer"):
        export_model(folder, tmp_path / "exported")


def test_default_labels_fit_a_label_map(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", "bert", num_labels=2)
    labels = tmp_path / "index_to_name.json"
    labels.write_text('{"0": "no", "1": "yes"}')
    build_archive(
        "two",
        handler=ROOT / "handler.py",
        model_dir=folder,
        extra_files=[labels],
        export_path=tmp_path / "store",
    )
    (answer,) = ask(folder, [{"input": TEXTS}], extra_files=[labels])
    assert set(answer.body) <= {"no", "yes"}


# Weights that are not the classifier's own, or not clear


def spoil(folder: Path, **change: Any) -> None:
    """Changes the weights: `lacks` a tensor, has `other` tensors, has them in another `dtype`."""
    from safetensors.torch import load_file, save_file

    file = folder / change.get("file", "model.safetensors")
    tensors = {name: tensor.to(change.get("dtype")) for name, tensor in load_file(file).items()}
    tensors |= change.get("other", {})
    tensors.pop(change.get("lacks", ""), None)
    save_file(tensors, file, {"format": "pt"})


def with_weights(folder: Path, *names: str) -> tuple[Path, str]:
    """A tiny model with several weights, each with an own label for all texts; and the last one's label."""
    tiny_model(folder, "bert", num_labels=3)
    for index, name in enumerate(names):
        if name != "model.safetensors":
            shutil.copy(folder / "model.safetensors", folder / name)
        bias = torch.zeros(3)
        bias[index] = 100
        spoil(folder, file=name, other={"classifier.bias": bias})
    return folder, f"LABEL_{len(names) - 1}"


@pytest.mark.parametrize("architecture", ["bert", "llama", "t5", "xlnet"])
def test_weights_that_lack_a_tensor_are_refused_by_its_name(architecture: str, tmp_path: Path) -> None:
    """It would be random, in each worker another one."""
    folder = tiny_model(tmp_path, architecture)
    head = {"bert": "classifier.weight", "llama": "score.weight", "xlnet": "logits_proj.weight"}
    name = head.get(architecture, "classification_head.out_proj.weight")
    spoil(folder, lacks=name)
    with pytest.raises(RuntimeError, match=f"Tensors missing: {name}\\. Export the"):
        ask(folder, [{"input": TEXTS}])


def test_weights_of_another_shape_are_refused_by_their_names(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "bert", num_labels=2)
    spoil(folder, other={"classifier.bias": torch.zeros(5), "classifier.weight": torch.zeros(5, 16)})
    with pytest.raises(RuntimeError, match=r"in another shape: classifier\.bias, classifier\.weight\."):
        ask(folder, [{"input": TEXTS}])


def test_a_layer_of_ones_own_is_refused_by_its_name(tmp_path: Path) -> None:
    """The model has no place for it, and would answer without it."""
    folder = tiny_model(tmp_path, "bert")
    spoil(folder, other={"bottleneck.weight": torch.zeros(4, 4)})
    with pytest.raises(RuntimeError, match=r"without a place: bottleneck\.weight\."):
        ask(folder, [{"input": TEXTS}])


@pytest.mark.parametrize("architecture", ["bert", "llama", "qwen2", "modernbert"])
def test_a_model_of_another_task_is_refused_by_its_class(architecture: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForTokenClassification

    folder = tiny_model(tmp_path, architecture)
    AutoModelForTokenClassification.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    with pytest.raises(RuntimeError, match=r"is a \w+ForTokenClassification .*which is no text classifier"):
        ask(folder, [{"input": TEXTS}])


def test_the_weights_that_the_manifest_names_answer(tmp_path: Path) -> None:
    """As after a redeploy with other weights, where the old ones lie beside them."""
    folder, label = with_weights(tmp_path / "model", "model.safetensors", "tuned.safetensors")
    extras = [file for file in folder.iterdir() if file.name != "tuned.safetensors"]
    (answer,) = run_handler(
        ROOT / "handler.py",
        [{"body": {"input": TEXTS}}],
        serialized_file=folder / "tuned.safetensors",
        extra_files=extras,
    )
    assert answer.body == [label] * len(TEXTS)


@pytest.mark.parametrize("name", ["tuned.safetensors", "model.safetensors"])
def test_weights_of_any_name_answer_if_they_are_the_only_ones(name: str, tmp_path: Path) -> None:
    folder, label = with_weights(tmp_path / "model", name)
    if name != "model.safetensors":
        (folder / "model.safetensors").unlink()
    (answer,) = ask(folder, [{"input": TEXTS}])
    assert answer.body == [label] * len(TEXTS)


def test_two_weights_and_no_word_which_are_refused(tmp_path: Path) -> None:
    folder, _ = with_weights(tmp_path / "model", "new.safetensors", "old.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(RuntimeError, match=r"Both new\.safetensors and old\.safetensors may be the weights"):
        ask(folder, [{"input": TEXTS}])


def test_weights_in_parts_answer(tmp_path: Path) -> None:
    """transformers writes parts of a model that is too large for one file."""
    from transformers import AutoModelForSequenceClassification

    folder = tiny_model(tmp_path, "bert")
    (whole,) = ask(folder, [{"input": TEXTS, "scores": True}])
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="10KB")
    assert len([*folder.glob("model-*-of-*.safetensors")]) > 1
    (parts,) = ask(folder, [{"input": TEXTS, "scores": True}])
    assert parts.body == whole.body


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("asked", ["float32", "bfloat16", "auto"])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_half_precision_weights_answer_right(
    architecture: str, asked: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = tiny_model(tmp_path / "model", architecture, num_labels=3)
    spoil(folder, dtype=dtype)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": str(dtype).removeprefix("torch.")}))
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"handler:\n  dtype: {asked}\n")
    (answer,) = ask(folder, [{"input": TEXTS, "scores": True}], config_file=settings)
    expected = logits(folder, TEXTS).softmax(dim=-1)
    found = torch.tensor([item["score"] for item in answer.body])
    tolerance = 1e-4 if asked == "float32" else 0.05
    assert torch.allclose(found, expected.max(dim=-1).values, atol=tolerance), (found, expected)


def test_code_that_a_model_brings_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model(tmp_path / "model", "bert")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    own = tmp_path / "own.py"
    own.write_text(f"from pathlib import Path\nPath({str(tmp_path / 'was_run')!r}).write_text('')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked on the terminal"))
    with pytest.raises(ValueError, match="custom code"):
        ask(folder, [{"input": TEXTS}], extra_files=[own])
    assert not (tmp_path / "was_run").exists()
