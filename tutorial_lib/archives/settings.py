"""The settings that TorchServe knows in a model config, and checks of settings that are nearly right.

TorchServe takes its default for a value that it can't read, and ignores a key that it does not know.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from tutorial_lib.errors import ArchiveError

# TorchServe's own defaults, of the settings that a server has to know.
DEFAULTS: dict[str, Any] = {
    "minWorkers": 1,
    "batchSize": 1,
    "maxBatchDelay": 100,  # ms
    "responseTimeout": 120,  # s
    "startupTimeout": 120,  # s
    "jobQueueSize": 100,
    "deviceType": "",
}
# What each setting takes: the minimum of a whole number, or the texts that it may be.
_MINIMUM = {
    "minWorkers": 0,
    "maxWorkers": 0,
    "batchSize": 1,
    "maxBatchDelay": 0,
    "responseTimeout": 1,
    "startupTimeout": 1,
    "jobQueueSize": 1,
    "maxRetryTimeoutInSec": 0,
    "clientTimeoutInMills": 0,
    "parallelLevel": 1,
    "sequenceMaxIdleMSec": 0,
    "sequenceTimeoutMSec": 0,
    "maxNumSequence": 1,
    "maxSequenceJobQueueSize": 1,
}
_SWITCHES = ("useJobTicket", "useVenv", "continuousBatching", "sequenceBatching", "asyncCommunication")
_WORDS = {
    "deviceType": ("cpu", "gpu"),
    "parallelType": ("pp", "tp", "pptp", "custom"),
    "service_envelope": ("body", "json", "kserve", "kservev2"),
}
_KNOWN = (*_MINIMUM, *_SWITCHES, *_WORDS, "deviceIds", "torchrun")
_SPELLED = {re.sub("[_-]", "", key).lower(): key for key in _KNOWN}
_NEAR = 0.88  # difflib's ratio: "minWorker" is near minWorkers, "max_length" is near nothing


def check_settings(settings: Mapping[str, Any], where: str, code: str | None = None) -> None:
    """Checks the settings of a model config: their values, their spelling and their level.

    Args:
        settings: from the YAML file.
        where: what has these settings, for the error message.
        code: the source of the archive's Python files. A key that stands there as a text is an option of the
            handler's own. None checks the values alone.

    Raises:
        ArchiveError: a value, a key's spelling or a key's level is wrong.

    >>> check_settings({"batch_size": 8}, "a.yaml", "")
    Traceback (most recent call last):
    tutorial_lib.errors.ArchiveError: a.yaml has batch_size, which TorchServe ignores. Write batchSize.
    >>> check_settings({"batchSize": 8, "handler": {"batch_size": 4}, "my_words": ["a"]}, "a.yaml", "")
    """
    for key, value in settings.items():
        if (wanted := _wanted(key)) and not _fits(key, value):
            raise ArchiveError(f"{where} has {key}: {value!r}. Give {wanted}.")
    minimum, maximum = settings.get("minWorkers", 0), settings.get("maxWorkers", 0)
    if maximum and minimum > maximum:
        raise ArchiveError(f"{where} has minWorkers: {minimum} and maxWorkers: {maximum}. Raise maxWorkers.")
    if code is None:
        return
    for key, value in settings.items():
        known = _meant(key)
        if known and known != key and not _is_text_in(code, key):
            raise ArchiveError(f"{where} has {key}, which TorchServe ignores. Write {known}.")
        if isinstance(value, dict) and key != "torchrun":
            _check_level(key, value, where, code)


def _check_level(section: str, options: Mapping[str, Any], where: str, code: str) -> None:
    misplaced = [key for key in options if key in _KNOWN and not _is_text_in(code, key)]
    if misplaced:
        raise ArchiveError(
            f"{where} has {', '.join(misplaced)} in the section {section}, where TorchServe does not look. "
            "Move it to the top level, without an indentation."
        )


def _wanted(key: object) -> str:
    """Returns what a setting takes, in words; "" for a key that TorchServe does not know."""
    if key in _MINIMUM:
        return f"a whole number of at least {_MINIMUM[str(key)]}"
    if key in _WORDS:
        return f"one of {', '.join(_WORDS[str(key)])}, or remove it"
    if key in _SWITCHES:
        return "true or false"
    return {"deviceIds": "a list of whole numbers", "torchrun": "a section, as nproc-per-node: 2"}.get(
        str(key), ""
    )


def _fits(key: str, value: Any) -> bool:
    if key in _MINIMUM:
        return type(value) is int and value >= _MINIMUM[key]
    if key in _WORDS:
        return isinstance(value, str) and value.lower() in _WORDS[key]
    if key == "deviceIds":
        return isinstance(value, list) and all(type(item) is int for item in value)
    return isinstance(value, dict if key == "torchrun" else bool)


def _meant(key: object) -> str | None:
    """Returns the setting that a key is or nearly is; None if there is none."""
    spelled = re.sub("[_-]", "", str(key)).lower()
    near = difflib.get_close_matches(spelled, _SPELLED, n=1, cutoff=_NEAR)
    return _SPELLED[near[0]] if near else None


def _is_text_in(code: str, key: str) -> bool:
    return re.search(rf"""["']{re.escape(str(key))}["']""", code) is not None
