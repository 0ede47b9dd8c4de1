"""Labels texts by plain torch in float32; the benchmark compares every answer with these labels."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


class PlainModel:
    """Labels texts in one padded batch and one forward pass, in float32."""

    def __init__(self, folder: str | Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self.longest = self.model.config.max_position_embeddings - 2
        labels = json.loads((Path(folder) / "index_to_name.json").read_text())
        self.labels = [labels[str(index)] for index in range(len(labels))]

    def __call__(self, texts: list[str]) -> list[str]:
        inputs = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        )
        with torch.inference_mode():
            return [self.labels[i] for i in self.model(**inputs).logits.argmax(dim=-1).tolist()]
