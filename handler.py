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
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from ts.metrics.dimension import Dimension
from ts.torch_handler.base_handler import BaseHandler

logger = logging.getLogger(__name__)
logger.info("Transformers version %s", transformers.__version__)

# model-config.yaml explains each; chapter 08 measures the first four.
DEFAULTS = {
    "backend": "torch",
    "dtype": "float32",
    "threads": None,
    "forward_size": 4,
    "max_texts": 1000,
    "log_texts": False,
    "metrics": False,
}

# A Python tokenizer's work grows with the square of a word's length, and it remembers every word it met.
# Limit both, so that a client cannot exhaust CPU or memory.
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

        if self.options["threads"]:
            torch.set_num_threads(self.options["threads"])
        if not (model_dir / "config.json").is_file():
            raise RuntimeError("Missing config.json: put the exported model's files into the archive")
        self.config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
        self.forward = self._load_backend(model_dir)
        logger.info("Successfully loaded the model")
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        # Some tokenizers say they take 1e30 tokens. RoBERTa's positions start at 2, hence the 2.
        self.max_tokens = min(self.tokenizer.model_max_length, self.config.max_position_embeddings - 2)
        logger.info("Successfully loaded tokenizer")
        self.mapping = self._load_labels(model_dir)
        self.initialized = True

    def _load_backend(self, model_dir):
        """A function from padded token ids and their mask, both [rows, tokens], to logits [rows, classes]."""
        backends = {"torch": self._load_torch, "onnx": self._load_onnx}
        if self.options["backend"] not in backends:
            raise RuntimeError(f"There is no backend {self.options['backend']!r}: it is torch or onnx")
        return backends[self.options["backend"]](model_dir)

    def _load_torch(self, model_dir):
        if not any(model_dir.glob("*.safetensors")):
            raise RuntimeError("Missing the weights: archive model.safetensors as --serialized-file")
        if self.options["dtype"] not in ("float32", "bfloat16"):
            raise RuntimeError(f"There is no dtype {self.options['dtype']!r}: it is float32 or bfloat16")
        self.model = AutoModelForSequenceClassification.from_pretrained(
            model_dir,
            dtype=getattr(torch, self.options["dtype"]),
            use_safetensors=True,
            local_files_only=True,
        )
        self.model.to(self.device).eval()

        def logits(ids, mask):
            inputs = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
            return self.model(**inputs).logits.float()

        return logits

    def _load_onnx(self, model_dir):
        try:
            import onnxruntime  # imported only for this backend: the default needs torch alone
        except ImportError as error:
            raise RuntimeError(
                "backend: onnx needs onnxruntime where TorchServe runs: pip install onnxruntime"
            ) from error
        if not (model_dir / "model.onnx").is_file():
            raise RuntimeError(
                "Missing model.onnx: tutorial_lib.export_onnx(model_dir) makes it; then archive again"
            )
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self.options["threads"] or 0  # 0: one for each core
        providers = ["CPUExecutionProvider"]
        # The fused operator takes a third of the run time on a CPU; separate ones are several times faster.
        session = onnxruntime.InferenceSession(
            model_dir / "model.onnx",
            settings,
            providers=providers,
            disabled_optimizers=["SkipLayerNormFusion"],
        )

        def logits(ids, mask):
            inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
            return torch.from_numpy(session.run(["logits"], inputs)[0])

        return logits

    def _load_labels(self, model_dir):
        """Class index → label: index_to_name.json, else the model's own config."""
        own = self.config.id2label
        mapping_file = model_dir / "index_to_name.json"
        if not mapping_file.is_file():
            logger.warning("Mapping file is not detected; using the labels of the model's config")
            return dict(own)
        try:
            labels = {int(index): name for index, name in json.loads(mapping_file.read_text()).items()}
            # TorchServe's own handlers take lists too, {"0": ["id", "Negative"], …}, and use the last item.
            labels = {index: name[-1] if isinstance(name, list) else name for index, name in labels.items()}
        except (ValueError, AttributeError, IndexError) as error:
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
        maximum = self.options["max_texts"]
        if len(texts) > maximum:
            return {"error": f"{len(texts)} texts are too many for one request. Send {maximum} at most."}
        if not isinstance(body.get("scores", False), bool):
            return {"error": '"scores" is neither true nor false.'}
        return {"texts": texts, "scores": body.get("scores", False)}

    def inference(self, texts):
        """Probabilities of each class, [texts, classes], in the order of the texts.

        Texts of similar length go through the model together, a few at a time: padding costs as much as
        words, and every row of a pass is as long as its longest one.
        """
        ids = [self._tokenize(text) for text in texts]
        self.tokens, self.slots = sum(map(len, ids)), 0  # for _report_metrics
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        probabilities = torch.empty(len(texts), self.config.num_labels)
        size = self.options["forward_size"]
        with torch.inference_mode():
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                padded, mask = self._pad([ids[i] for i in rows])
                self.slots += padded.numel()
                probabilities[rows] = self.forward(padded, mask).softmax(dim=-1).cpu()
        logger.info("Predictions successfully created")
        return probabilities

    def _pad(self, rows):
        tensors = [torch.tensor(row) for row in rows]
        mask = pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True)
        return pad_sequence(tensors, batch_first=True, padding_value=self.tokenizer.pad_token_id), mask

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

        Counters only, so that Prometheus can compute ratios over any time and any number of workers; one
        line per batch and counter keeps the log small.
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
