"""The finished handler: chapters 02 to 04 build it, chapter 05 and later ones serve it.

A request {"input": ["text", …]} gets ["Positive", …]; with "scores": true it gets
[{"label": "Positive", "score": 0.98}, …]. A multi-label model answers each text with a list of the labels
that score `threshold` or more; a regression answers with a number. A bad request gets its own 400, 413 or
503 with an error message, and the other requests of its batch get their answers.
"""

import hashlib
import importlib.util
import itertools
import json
import logging
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

import psutil
import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from ts.metrics.dimension import Dimension
from ts.torch_handler.base_handler import BaseHandler

logger = logging.getLogger(__name__)
logger.info("Transformers version %s", transformers.__version__)

# model-config.yaml explains each option; chapter 09 measures the first five.
DEFAULTS = {
    "backend": "auto",
    "dtype": "float32",
    "threads": None,
    "passes": 1,
    "forward_size": 4,
    "max_texts": 1000,
    "max_batch_tokens": 16384,
    "threshold": 0.5,
    "log_texts": False,
    "metrics": False,
}

# A Python tokenizer caches every word it meets, and its work grows with the square of a word's length.
# Limit both, so that a client cannot exhaust CPU or memory.
LONG_TEXT_CHARACTERS, MAX_WORD_CHARACTERS = 1_000, 100
MAX_REMEMBERED_WORDS = 50_000
# Weights that are too large for one file are in parts, with an index of their tensors.
PARTS, INDEX = "model-*-of-*.safetensors", "model.safetensors.index.json"
# from_pretrained downloads nothing, runs no code of a model's folder, and reports tensors that do not fit.
LOCAL = {"local_files_only": True, "trust_remote_code": False}
REPORT = {"output_loading_info": True, "ignore_mismatched_sizes": True}

# JSON can write half of a surrogate pair, as a text cut in the middle of an emoji has; UTF-8 can't.
SURROGATE = re.compile("[\ud800-\udfff]")

NO_INPUT = (
    'The body has no "input". Send {"input": ["a text", …]} with the header Content-Type: application/json.'
)

# Turns logits [rows, labels] into scores of the same shape, by the model's problem_type.
SCORES = {
    "single_label_classification": lambda logits: logits.softmax(dim=-1),
    "multi_label_classification": torch.sigmoid,
    "regression": lambda logits: logits,
}


class ModelHandler(BaseHandler):
    """Gives texts labels or numbers, by any model that AutoModelForSequenceClassification loads."""

    def initialize(self, context):
        """Loads model, tokenizer and labels; a RuntimeError says which file is missing or does not fit."""
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
        passes = self.options["passes"] = self._passes(self.options["passes"])
        logger.info("Forward passes at once: %d", passes)
        self.in_passes = map
        if passes > 1:  # each thread has a number of OpenMP threads of its own too
            threads = (torch.get_num_threads(),)
            self.in_passes = ThreadPoolExecutor(passes, "pass", torch.set_num_threads, threads).map
        if not (model_dir / "config.json").is_file():
            raise RuntimeError("Missing config.json: put the exported model's files into the archive")
        self.config = AutoConfig.from_pretrained(model_dir, **LOCAL)
        by_labels = "regression" if self.config.num_labels == 1 else "single_label_classification"
        self.problem_type = self.config.problem_type or by_labels  # what the logits mean
        self.forward = self._load_backend(model_dir)
        logger.info("Successfully loaded the model")
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir, **LOCAL)
        self.max_tokens = self._max_tokens()
        # The config's id, not the tokenizer's: RoBERTa counts positions and GPT-2 finds a text's end by it.
        self.padding = self.config.pad_token_id
        logger.info("Successfully loaded tokenizer")
        self.mapping = self._load_labels(model_dir)
        self._check_model()
        self.initialized = True

    def _max_tokens(self):
        """Returns how many tokens a text may have, by the tokenizer's limit and the model's positions.

        Some tokenizers claim to take 1e30 tokens, and models with relative positions (T5) set no limit: the
        limit is then 512. RoBERTa's positions start at 2, so 2 are subtracted.
        """
        positions = getattr(self.config, "max_position_embeddings", None) or 0  # XLNet's is -1
        limit = min(self.tokenizer.model_max_length, positions - 2 if positions > 2 else 1_000_000)
        return limit if limit < 1_000_000 else 512

    def _load_backend(self, model_dir):
        """A function from padded token ids and their mask, both [rows, tokens], to logits [rows, classes]."""
        backend, loaders = self.options["backend"], {"torch": self._load_torch, "onnx": self._load_onnx}
        if backend == "auto":
            has_graph = self.device.type == "cpu" and (model_dir / "model.onnx").is_file()
            installed = importlib.util.find_spec("onnxruntime") is not None
            if has_graph and not installed:
                logger.warning("model.onnx is not used: pip install onnxruntime where TorchServe runs")
            backend = "onnx" if has_graph and installed else "torch"
        if backend not in loaders:
            raise RuntimeError(f"There is no backend {backend!r}: it is auto, torch or onnx")
        self.options["backend"] = backend
        return loaders[backend](model_dir)

    def _find_weights(self, model_dir):
        """Returns the files of the weights: the manifest's serializedFile, else the only ones."""
        name, parts = self.manifest["model"].get("serializedFile"), sorted(model_dir.glob(PARTS))
        if name and not name.endswith(".onnx") and model_dir / name not in parts:
            return [model_dir / name]  # weights of an older version may lie beside it
        files = parts or sorted(model_dir.glob("*.safetensors"))
        if len(files) > 1 and not parts:
            names = " and ".join(file.name for file in files)
            raise RuntimeError(f"Both {names} may be the weights: archive one of them as --serialized-file")
        return files

    def _load_torch(self, model_dir):
        files = self._find_weights(model_dir)
        if not files or files[0].suffix != ".safetensors":
            raise RuntimeError("Missing the weights: archive model.safetensors as --serialized-file")
        _check_memory(*files)
        dtype = self.options["dtype"] = self._dtype(self.options["dtype"])
        self.config.transformers_weights = files[0].name if len(files) == 1 else INDEX
        self.model, found = AutoModelForSequenceClassification.from_pretrained(
            model_dir, config=self.config, dtype=getattr(torch, dtype), **LOCAL, **REPORT
        )
        self._check_tensors(found)
        self.model.to(self.device).eval()
        logger.info("Using backend torch in %s", dtype)

        def logits(ids, mask):
            inputs = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
            return self.model(**inputs).logits.float()

        return logits

    def _check_tensors(self, found):
        """Refuses weights of another model: tensors would be left out, or random, in each worker others."""
        named = self.config.architectures or []
        if named and not any(name.endswith("ForSequenceClassification") for name in named):
            raise RuntimeError(f"The model is a {named[0]} by its config.json, which is no text classifier")
        wrong = {
            "missing": found["missing_keys"],
            "in another shape": {name for name, *_ in found["mismatched_keys"]},
            "without a place": found["unexpected_keys"],
        }
        lists = [f"{what}: {', '.join(sorted(names)[:5])}" for what, names in wrong.items() if names]
        if lists:
            raise RuntimeError(
                f"The weights are not the whole model's. Tensors {'; '.join(lists)}. Export the fine-tuned "
                "classifier with tutorial_lib.export_model, and archive that"
            )

    def _passes(self, asked):
        """Returns how many forward passes run at once; auto: as many as this process has cores for."""
        if asked == "auto":
            cores = _cores()
            return 1 if self.device.type == "cuda" else max(1, cores // (self.options["threads"] or cores))
        if type(asked) is not int or asked < 1:
            raise RuntimeError(f"passes is {asked!r}, but should be auto or a number from 1 up")
        return asked

    def _dtype(self, asked):
        """Returns the dtype asked for; auto takes bfloat16 where the hardware computes in it."""
        if asked not in ("auto", "float32", "bfloat16"):
            raise RuntimeError(f"There is no dtype {asked!r}: it is auto, float32 or bfloat16")
        if asked == "float32":
            return asked
        if self.device.type == "cuda":
            able = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            found = getattr(torch.cpu, "get_capabilities", dict)()  # older torch lacks this function
            able = any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # "bf16": Arm's
        if asked == "auto":
            return "bfloat16" if able else "float32"
        if not able:
            logger.warning("%s does not compute in bfloat16: float32 is faster", self.device)
        return asked

    def _load_onnx(self, model_dir):
        import onnxruntime  # imported only for this backend: the default needs torch alone

        graph = model_dir / "model.onnx"
        if not graph.is_file():
            raise RuntimeError(
                "Missing model.onnx: make it with tutorial_lib.export_onnx, then archive again"
            )
        _check_memory(graph)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self.options["threads"] or 0  # 0: one for each core
        # The fused operator takes a third of the run time on a CPU; separate ones are several times faster.
        slow, providers = ["SkipLayerNormFusion"], ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(graph, settings, providers, disabled_optimizers=slow)
        made_of = session.get_modelmeta().custom_metadata_map.get("weights_sha256")  # export_onnx writes it
        weights = self._find_weights(model_dir)
        if made_of and weights and made_of != _sha256(weights):
            raise RuntimeError(
                f"model.onnx was made of other weights than {weights[0].name}: make it again with "
                "tutorial_lib.export_onnx, or leave it out; then archive again"
            )
        logger.info("Using backend onnx")

        def logits(ids, mask):
            inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
            return torch.from_numpy(session.run(["logits"], inputs)[0])

        return logits

    def _check_model(self):
        """Computes two texts alone and together, so that a faulty model fails now, not at each request."""
        ids = [self._tokenize(text) for text in ("a text", "a text that is longer than the other one")]
        try:
            with torch.inference_mode():
                alone = torch.cat([self.forward(*self._pad([row])) for row in ids])
        except Exception as error:
            raise RuntimeError(f"The model loads, and can't compute a text: {error}") from error
        if alone.shape != (2, self.config.num_labels) or not alone.isfinite().all():
            raise RuntimeError(
                f"The model gives {alone.tolist()}, not {self.config.num_labels} numbers a text"
            )
        reason = "" if self.padding is not None else "the model's config has no pad_token_id"
        if not reason and self.options["backend"] == "torch":  # XLNet, for one, needs padding on the left
            tolerance = 1e-3 if self.options["dtype"] == "float32" else 0.1
            with torch.inference_mode():
                same = torch.allclose(self._logits(ids), alone, atol=tolerance)
            reason = "" if same else "the model's answers change with padding"
        if reason:
            self.options["forward_size"] = 1
            logger.warning("Each text goes through the model by itself, which is slow: %s", reason)

    def _load_labels(self, model_dir):
        """Returns class index → label, from index_to_name.json, else from the model's own config."""
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
        """Answers a batch of requests: one answer for each request, in order."""
        self.context = context
        if len(data) == 1 and self._is_describe():
            return [self.describe_handle()]
        logger.info("Requests %s", " ".join((getattr(context, "request_ids", None) or {}).values()))
        parsed = self.preprocess(data)
        scores = self.inference([ids for item in parsed for ids in item.get("ids", ())])
        if self.options["metrics"]:
            self._report_metrics(parsed, scores)
        return self.postprocess(parsed, scores)

    def preprocess(self, requests):
        """Reads each request: {"texts": […], "ids": [[token, …], …], "scores": bool} or {"error": "…"}.

        TorchServe hands them over as [{"body": {"input": ["text"]}}, …]. The key is "data" for a form field
        of that name; the value is a dict for application/json, a str for text/*, and bytes otherwise.
        """
        parsed = self._limit([self._tokenize_all(self._parse(request)) for request in requests])
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
            return {"error": NO_INPUT}
        texts = body["input"]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            return {"error": '"input" is not a list of texts. Send {"input": ["a text", …]}.'}
        if any(map(SURROGATE.search, texts)):
            return {"error": "A text has half of a surrogate pair, which is no character: it was cut in two."}
        maximum = self.options["max_texts"]
        if len(texts) > maximum:
            return {"error": f"{len(texts)} texts are too many for one request. Send {maximum} at most."}
        if not isinstance(body.get("scores", False), bool):
            return {"error": '"scores" is neither true nor false.'}
        return {"texts": texts, "scores": body.get("scores", False)}

    def _tokenize_all(self, item):
        """Adds the tokens of a request's texts. A text that the tokenizer can't take gives an error."""
        if "error" in item:
            return item
        ids, tokens, maximum = [], 0, self.options["max_batch_tokens"]
        try:
            for text in item["texts"]:
                ids.append(self._tokenize(text))
                tokens += len(ids[-1])
                if tokens > maximum:
                    return {"error": f"The texts have more than {maximum} tokens. Send fewer.", "status": 413}
        except Exception as error:
            logger.exception("A text can't be tokenized")
            return {"error": f"The model's tokenizer can't read a text: {type(error).__name__}."}
        if not all(ids):
            return {"error": "A text is empty: the model's tokenizer finds no token in it."}
        return {**item, "ids": ids}

    def _limit(self, parsed):
        """Refuses a batch's longest requests if it has too many tokens, which may outlast responseTimeout."""
        sizes, tokens = [sum(map(len, item.get("ids", ()))) for item in parsed], 0
        for index in sorted(range(len(parsed)), key=lambda i: sizes[i]):
            tokens += sizes[index]
            if tokens > self.options["max_batch_tokens"]:
                parsed[index] = {"error": "Too many texts came at once. Try again.", "status": 503}
        return parsed

    def _tokenize(self, text):
        cache = getattr(self.tokenizer, "cache", None)  # BertweetTokenizer's cache has no limit
        if cache is not None and len(cache) > MAX_REMEMBERED_WORDS:
            cache.clear()
        if len(text) > LONG_TEXT_CHARACTERS and not self.tokenizer.is_fast:
            # Every word is at least one token, so later words would be cut off anyway.
            words = text.split(maxsplit=self.max_tokens)[: self.max_tokens]
            text = " ".join(word[:MAX_WORD_CHARACTERS] for word in words)
        return self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"]

    def inference(self, ids):
        """Returns scores, [texts, labels], for lists of tokens; NaN where a text can't be computed.

        Texts of similar length go through the model together, since padding costs as much as words.
        """
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        size = self.options["forward_size"]
        passes = [order[start : start + size] for start in range(0, len(order), size)]
        self.tokens = sum(map(len, ids))  # this and slots are for _report_metrics
        self.slots = sum(len(rows) * len(ids[rows[-1]]) for rows in passes)  # the last row is the longest
        scores = torch.empty(len(ids), self.config.num_labels)
        found = self.in_passes(self._scores, [[ids[i] for i in rows] for rows in passes])
        scores[order] = torch.cat([scores[:0], *found])
        logger.info("Predictions successfully created")
        return scores

    def _scores(self, rows):
        """Returns the scores of one pass. Each thread needs its own inference_mode."""
        with torch.inference_mode():
            return SCORES[self.problem_type](self._logits(rows)).cpu()

    def _logits(self, rows):
        """Returns the logits of a few texts. If one text can't be computed, the others still are."""
        padded, mask = self._pad(rows)
        try:
            return self.forward(padded, mask)
        except Exception:  # T5 needs the same number of end tokens in each row; a text may have some
            logger.exception("The model can't compute %d texts together", len(rows))
            if len(rows) == 1:
                return torch.full((1, self.config.num_labels), torch.nan)
            return torch.cat([self._logits([row]).cpu() for row in rows])

    def _pad(self, rows):
        tensors, side = [torch.tensor(row) for row in rows], self.tokenizer.padding_side
        mask = pad_sequence([torch.ones_like(row) for row in tensors], True, padding_side=side)
        padded = pad_sequence(tensors, True, padding_value=self.padding or 0, padding_side=side)
        return padded, mask

    def postprocess(self, parsed, scores):
        """Gives each request its answer: labels or numbers, with scores if asked for, or its own error."""
        rows = iter(scores.tolist())
        answers = []
        for index, item in enumerate(parsed):
            self.context.set_response_content_type(index, "application/json")
            if "error" in item:
                answers.append(self._refuse(index, item.get("status", 400), item["error"]))
                continue
            own = [next(rows) for _ in item["texts"]]
            if all(map(math.isfinite, itertools.chain.from_iterable(own))):
                answers.append([self._answer(row, item["scores"]) for row in own])
            else:
                message = "The model gives no number for a text. The server's log may say why."
                answers.append(self._refuse(index, 500, message))
        if self.options["log_texts"]:
            logger.info("PREDICTED LABELS: %s", answers)
        return answers

    def _refuse(self, index, code, message):
        phrase = HTTPStatus(code).phrase
        self.context.set_response_status(code=code, phrase=phrase, idx=index)
        return {"code": code, "type": phrase.replace(" ", ""), "message": message}

    def _answer(self, row, with_scores):
        """Makes one text's answer from its row of scores."""
        pairs = [{"label": self.mapping[index], "score": score} for index, score in enumerate(row)]
        if self.problem_type == "regression":
            numbers = pairs if with_scores else row
            return numbers[0] if len(row) == 1 else numbers
        if self.problem_type == "multi_label_classification":
            found = [pair for pair in pairs if pair["score"] >= self.options["threshold"]]
            return found if with_scores else [pair["label"] for pair in found]
        best = max(pairs, key=lambda pair: pair["score"])
        return best if with_scores else best["label"]

    def describe_handle(self):
        """Returns what a description with customized=true adds: what this model answers, and how."""
        labels = [self.mapping[index] for index in sorted(self.mapping)]
        return {"labels": labels, "max_tokens": self.max_tokens, "options": self.options}

    def _report_metrics(self, parsed, scores):
        """Adds this batch to the counters of metrics.yaml: Prometheus can compute ratios of counters."""
        metrics = getattr(self.context, "metrics", None)
        if metrics is None:  # in a notebook, with no server
            return
        computed = scores[scores.isfinite().all(dim=-1)]
        counts = [
            ("handler_requests_total", len(parsed), {}),
            ("handler_refused_total", sum("error" in item for item in parsed), {}),
            ("handler_texts_total", len(scores), {}),
            ("handler_tokens_total", self.tokens, {}),
            ("handler_padding_total", self.slots - self.tokens, {}),
        ]
        if self.problem_type != "regression":
            best, classes = computed.max(dim=-1)
            counts.append(("handler_confidence_total", round(float(best.sum()), 3), {}))
            if self.problem_type == "multi_label_classification":
                classes = (computed >= self.options["threshold"]).nonzero()[:, 1]
            for index, count in enumerate(classes.bincount().tolist()):
                counts.append(("handler_labels_total", count, {"label": self.mapping[index]}))
        version = self.manifest["model"].get("modelVersion", "")
        for name, count, dimensions in counts:
            if count:
                own = [Dimension(*pair) for pair in {**dimensions, "model_version": version}.items()]
                metrics.add_metric(name, count, "count", dimensions=own)


def _cores():
    """Returns how many cores this process may use. A Ray replica's share is in OMP_NUM_THREADS."""
    share = os.environ.get("OMP_NUM_THREADS", "")
    if share.isdigit():
        return int(share)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _sha256(files):
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            hashlib.file_digest(content, lambda: digest)
    return digest.hexdigest()


def _check_memory(*weights):
    """A worker that finds no memory is killed without a word; better to say it before."""
    need, free = sum(file.stat().st_size for file in weights), psutil.virtual_memory().available
    if need > free:
        raise RuntimeError(
            f"The weights need {need / 1e6:.0f} MB of memory, and {free / 1e6:.0f} MB are free. Each worker "
            "has its own copy: set fewer (minWorkers, maxWorkers), or add memory"
        )
