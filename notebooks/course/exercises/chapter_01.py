import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from course.exercises import Exercise


def _reads_labels(labels: Callable[[Path], dict[int, str]]) -> bool:
    with TemporaryDirectory() as folder:
        config = {"id2label": {"0": "cold", "1": "warm"}}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return labels(Path(folder)) == {0: "cold", 1: "warm"}


def _is_kinder(text: str) -> bool:
    """Whether the other words are still there; a model, not this check, knows what is kind."""
    return text.startswith("The food was ") and text.endswith(", again.") and "awful" not in text


EXERCISES = {
    "01.1": Exercise(
        _reads_labels,
        'config.json has them under "id2label"; JSON keys are texts, and you want ints',
        """import json

def answer(folder):
    config = json.loads((folder / "config.json").read_text())
    return {int(index): label for index, label in config["id2label"].items()}""",
    ),
    "01.2": Exercise(
        lambda answer: [answer([2.0, 0.1, -1.0]), answer([-1.0, 0.0, 3.0])] == ["NEG", "POS"],
        "softmax keeps the order, so the largest logit has the largest probability",
        """def answer(logits):
    return ["NEG", "NEU", "POS"][max(range(3), key=lambda i: logits[i])]""",
    ),
    "01.3": Exercise(
        lambda answer: _is_kinder(answer("The food was awful, again.")),
        "a text has the method replace",
        """def answer(text):
    return text.replace("awful", "wonderful")""",
    ),
}
