"""Tiny models of many architectures, with random weights, in the form that `save_pretrained` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEXTS = ["I love this phone so much", "bad bad service, never again", "The meeting is at 10 tomorrow.", "ok"]

# What makes each architecture small; it goes over a config with a vocabulary and two labels.
_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "albert": {**_SMALL, "embedding_size": 8},
    "bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    | {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
    "bert": _SMALL,
    "big_bird": {**_SMALL, "attention_type": "original_full"},
    "camembert": _SMALL,
    "deberta-v2": _SMALL,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "electra": {**_SMALL, "embedding_size": 16},
    "ernie": _SMALL,
    "gemma": {**_SMALL, "num_key_value_heads": 1, "head_dim": 8},
    "gpt2": _GPT,
    "gpt_neox": _SMALL,
    "llama": {**_SMALL, "num_key_value_heads": 2},
    "modernbert": _SMALL,
    "mpnet": _SMALL,
    "nystromformer": _SMALL,
    "opt": {**_SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16},
    "qwen2": {**_SMALL, "num_key_value_heads": 2},
    "rembert": {**_SMALL, "input_embedding_size": 16, "output_embedding_size": 16},
    "roberta": _SMALL,
    "roformer": {**_SMALL, "embedding_size": 16},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    "xlm-roberta": _SMALL,
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},  # its tokenizer pads on the left
}


def tiny_model(
    folder: Path, architecture: str, *, tokenizer: bool = True, padding_side: str = "right", **config: Any
) -> Path:
    """Writes a model with random weights, and a tokenizer that was trained on a few texts.

    Args:
        folder: where to.
        architecture: a key of ARCHITECTURES.
        tokenizer: whether to write the tokenizer too.
        padding_side: the tokenizer's.
        config: settings of the model's config, as num_labels; pad_token_id=None leaves it out.

    Returns:
        `folder`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    made = _tokenizer()
    ids = {f"{name}_token_id": made.convert_tokens_to_ids(f"<{name}>") for name in ("pad", "bos", "eos")}
    ids["decoder_start_token_id"] = ids["pad_token_id"]
    settings = {"vocab_size": len(made), **ids, **ARCHITECTURES[architecture], **config}
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(architecture, **settings))
    for parameter in model.parameters():  # else the logits of a fresh model are all but equal
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    if tokenizer:
        made.padding_side = padding_side
        made.save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    """A byte-level BPE, as GPT-2 has: it knows every text. An end token, since BART and T5 look for it."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    specials = ["<bos>", "<pad>", "<eos>", "<unk>"]
    trained.train_from_iterator(TEXTS, vocab_size=400, min_frequency=1, special_tokens=specials)
    backend = trained._tokenizer
    eos = ("<eos>", backend.token_to_id("<eos>"))
    backend.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[eos])
    tokens = {f"{name}_token": f"<{name}>" for name in ("bos", "pad", "eos", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **tokens)
