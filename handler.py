"""The finished handler: chapters 02 to 04 build it, chapter 05 and later ones serve it.

A request {"input": ["text", …]} gets ["Positive", …]; with "scores": true it gets
[{"label": "Positive", "score": 0.98}, …]. A bad request gets a 400 of its own, with a sentence, and
the other requests of its batch get their answers.
"""

import json
import logging
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from ts.metrics.dimension import Dimension
from ts.torch_handler.base_handler import BaseHandler

logger = logging.getLogger(__name__)
logger.info("Transformers version %s", transformers.__version__)

DEFAULTS = {"max_texts": 1000, "forward_size": 32, "log_texts": False, "metrics": False}

# A Python tokenizer's work grows with the square of a word's length and it remembers every word it
# met. Neither may be in the hands of a client.
LONG_TEXT_CHARACTERS, MAX_WORD_CHARACTERS = 1_000, 100
MAX_REMEMBERED_WORDS = 50_000


class ModelHandler(BaseHandler):
    """Sentiment of texts, for models that AutoModelForSequenceClassification loads."""

    def initialize(self, context):
        """Loads the model, the tokenizer and the labels from the unpacked archive.

        Args:
            context: TorchServe's Context; chapter 02 shows what is in it.

        Raises:
            RuntimeError: a file is missing or does not fit the others.
        """
        properties = context.system_properties
        self.manifest = context.manifest
        logger.info("Properties: %s", properties)
        logger.info("Manifest: %s", self.manifest)
        model_dir = Path(properties["model_dir"])
        config = (context.model_yaml_config or {}).get("handler") or {}
        self.options = {**DEFAULTS, **config}

        gpu_id = properties.get("gpu_id")
        on_gpu = torch.cuda.is_available() and gpu_id is not None
        self.device = torch.device(f"cuda:{gpu_id}" if on_gpu else "cpu")
        logger.info("Using device %s", self.device)

        self.model = self._load_model(model_dir)
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        # Some tokenizers say they take 1e30 tokens. RoBERTa's positions start at 2, hence the 2.
        self.max_tokens = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings - 2)
        logger.info("Successfully loaded tokenizer")
        self.mapping = self._load_labels(model_dir)
        self.initialized = True

    def _load_model(self, model_dir):
        if not (model_dir / "config.json").is_file():
            raise RuntimeError("Missing config.json: put the exported model's files into the archive")
        if not any(model_dir.glob("*.safetensors")):
            raise RuntimeError("Missing the weights: archive model.safetensors as --serialized-file")
        model = AutoModelForSequenceClassification.from_pretrained(
            model_dir, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
        logger.info("Successfully loaded the model")
        return model.to(self.device).eval()

    def _load_labels(self, model_dir):
        """Class index → label: index_to_name.json, else the model's own config."""
        own = self.model.config.id2label
        mapping_file = model_dir / "index_to_name.json"
        if not mapping_file.is_file():
            logger.warning("Mapping file is not detected; using the labels of the model's config")
            return dict(own)
        try:
            labels = {int(index): name for index, name in json.loads(mapping_file.read_text()).items()}
        except (ValueError, AttributeError) as error:
            raise RuntimeError('index_to_name.json should look like {"0": "Negative", …}') from error
        if set(labels) != set(own):
            raise RuntimeError(
                f"index_to_name.json has labels for classes {sorted(labels)}, the model has {sorted(own)}"
            )
        logger.info("Successfully loaded mapping file")
        return labels

    def handle(self, data, context):
        """A batch of requests in, one answer for each out, in order."""
        self.context = context
        if len(data) == 1 and self._is_describe():
            return [self.describe_handle()]
        logger.info("Requests %s", " ".join((getattr(context, "request_ids", None) or {}).values()))
        parsed = self.preprocess(data)
        texts = [text for item in parsed if "texts" in item for text in item["texts"]]
        probabilities = self.inference(texts)
        if self.options["metrics"]:
            self._report_metrics(parsed, probabilities)
        return self.postprocess(parsed, probabilities)

    def preprocess(self, requests):
        """Reads each request of a batch.

        Args:
            requests: as TorchServe hands them over: [{"body": {"input": ["text"]}}, …]. The key is
                "data" for a form field of that name; the value is a dict where the client said
                application/json, a str for text/*, and bytes otherwise.

        Returns:
            for each request, {"texts": […], "scores": bool}, or {"error": "what is wrong"}.
        """
        parsed = [self._parse(request) for request in requests]
        count = sum(len(item.get("texts", ())) for item in parsed)
        logger.info("Received %d texts in %d requests", count, len(requests))
        if self.options["log_texts"]:
            logger.info("Request object: %s", requests)
        return parsed

    def _parse(self, request):
        body = request.get("body")
        if body is None:
            body = request.get("data")
        if isinstance(body, (str, bytes, bytearray)):
            try:
                body = json.loads(body)
            except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
                return {"error": 'The body is not JSON. Send {"input": ["a text", …]} in UTF-8.'}
        if not isinstance(body, dict) or "input" not in body:
            return {"error": 'The body has no "input". Send {"input": ["a text", …]}.'}
        texts = body["input"]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            return {"error": '"input" is not a list of texts. Send {"input": ["a text", …]}.'}
        most = self.options["max_texts"]
        if len(texts) > most:
            return {"error": f"{len(texts)} texts are too many for one request. Send {most} at most."}
        if not isinstance(body.get("scores", False), bool):
            return {"error": '"scores" is neither true nor false.'}
        return {"texts": texts, "scores": body.get("scores", False)}

    def inference(self, texts):
        """Probabilities of each class, [texts, classes], in the order of the texts.

        All texts of a batch go through together, those of like length side by side: a row of padding
        costs as much as a row of words.
        """
        ids = [self._tokenize(text) for text in texts]
        self.tokens, self.slots = sum(map(len, ids)), 0  # for _report_metrics
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        probabilities = torch.empty(len(texts), self.model.config.num_labels)
        size = self.options["forward_size"]
        with torch.inference_mode():
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                inputs = self.tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt")
                self.slots += inputs["input_ids"].numel()
                logits = self.model(**inputs.to(self.device)).logits
                probabilities[rows] = logits.softmax(dim=-1).cpu()
        logger.info("Predictions successfully created")
        return probabilities

    def _tokenize(self, text):
        cache = getattr(self.tokenizer, "cache", None)  # BertweetTokenizer's, which never forgets
        if cache is not None and len(cache) > MAX_REMEMBERED_WORDS:
            cache.clear()
        if len(text) > LONG_TEXT_CHARACTERS:
            # Every word is at least one token, so later words would be cut off anyway.
            words = text.split(maxsplit=self.max_tokens)[: self.max_tokens]
            text = " ".join(word[:MAX_WORD_CHARACTERS] for word in words)
        return self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"]

    def postprocess(self, parsed, probabilities):
        """Gives each request its answer: labels, labels with scores, or its own 400."""
        scores, classes = probabilities.max(dim=-1) if len(probabilities) else ((), ())
        found = iter([(self.mapping[int(c)], float(s)) for c, s in zip(classes, scores, strict=True)])
        answers = []
        for index, item in enumerate(parsed):
            self.context.set_response_content_type(index, "application/json")
            if "error" in item:
                self.context.set_response_status(code=400, phrase="Bad Request", idx=index)
                answers.append({"code": 400, "type": "BadRequest", "message": item["error"]})
                continue
            own = [next(found) for _ in item["texts"]]
            if item["scores"]:
                answers.append([{"label": label, "score": score} for label, score in own])
            else:
                answers.append([label for label, _ in own])
        if self.options["log_texts"]:
            logger.info("PREDICTED LABELS: %s", answers)
        return answers

    def describe_handle(self):
        """What a description with customized=true adds: what this model answers, and how."""
        labels = [self.mapping[index] for index in sorted(self.mapping)]
        return {"labels": labels, "max_tokens": self.max_tokens, "options": self.options}

    def _report_metrics(self, parsed, probabilities):
        """Adds this batch to the counters that metrics.yaml declares.

        Counters only: shares and means are ratios of their rates, and so hold for any time and any
        number of workers. Each is a line that the frontend parses, hence none for each text.
        """
        metrics = getattr(self.context, "metrics", None)
        if metrics is None:  # in a notebook, with no server
            return
        confidences, classes = probabilities.max(dim=-1)
        counts = [
            ("handler_requests_total", len(parsed), {}),
            ("handler_refused_total", sum("error" in item for item in parsed), {}),
            ("handler_texts_total", len(probabilities), {}),
            ("handler_tokens_total", self.tokens, {}),
            ("handler_padding_total", self.slots - self.tokens, {}),
            ("handler_confidence_total", round(float(confidences.sum()), 3), {}),
        ]
        for index, count in enumerate(classes.bincount().tolist()):
            counts.append(("handler_labels_total", count, {"label": self.mapping[index]}))
        version = self.manifest["model"].get("modelVersion", "")
        for name, count, dimensions in counts:
            if count:
                own = [Dimension(*pair) for pair in {**dimensions, "model_version": version}.items()]
                metrics.add_metric(name, count, "count", dimensions=own)
