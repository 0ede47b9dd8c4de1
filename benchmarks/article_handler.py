"""A handler like that of the article "Serving PyTorch Models Using TorchServe", which README.md names.

It answers one request at a time, whatever the batch holds.
"""

import json
import os
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from ts.torch_handler.base_handler import BaseHandler


class ArticleHandler(BaseHandler):
    def initialize(self, context):
        folder = Path(context.system_properties["model_dir"])
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.mapping = json.loads((folder / "index_to_name.json").read_text())
        if threads := os.environ.get("ARTICLE_THREADS"):  # the article sets no threads
            torch.set_num_threads(int(threads))
        self.initialized = True

    def preprocess(self, requests):
        body = requests[0].get("body") or requests[0].get("data")
        return self.tokenizer(body["input"], padding=True, return_tensors="pt")

    def inference(self, inputs):
        logits = self.model(**inputs).logits
        return torch.nn.functional.softmax(logits, dim=-1).argmax(dim=1).tolist()

    def postprocess(self, outputs):
        return [[self.mapping[str(label)] for label in outputs]]
