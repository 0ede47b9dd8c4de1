"""What an error says to do: the table of advice, and the messages that are put together."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tutorial_lib import (
    AnswerBrokeOff,
    ApiError,
    ConnectionFailed,
    NoAnswer,
    NoKeyFile,
    StartTimeout,
    TimedOut,
    TlsError,
    TutorialError,
    WorkerFailed,
    errors,
)
from tutorial_lib.errors import hint_for_log, is_retryable

INTERNAL = "InternalServerException"


@pytest.mark.parametrize(
    ("status", "kind", "message", "advice"),
    [
        (400, "InvalidKeyException", "Token Authorization failed", "missing, wrong or expired"),
        (401, "Unauthorized", "", "container.token"),
        (403, INTERNAL, "Cannot remove default version for model m", "set_default"),
        (404, "ModelNotFoundException", "Model not found: m", "list_models"),
        (404, "ModelVersionNotFoundException", "Model version: 9 does not exist", "describe_all"),
        (
            404,
            "ModelNotFoundException",
            "Model not found at: x.mar",
            "is in the server's model store",
        ),
        (404, "ResourceNotFoundException", "Requested resource is not found", "have one each"),
        (405, "MethodNotAllowedException", "not allowed", "model_api=True"),
        (409, "ConflictStatusException", "already registered", "unregister it first"),
        (413, "RequestEntityTooLargeException", "too large", "max_request_size"),
        (400, "InvalidModelException", "Failed to load", "build_archive"),
        (500, INTERNAL, "Failed to save model: x.mar", "build_archive"),
        (400, INTERNAL, "Given URL x does not match any allowed URL(s)", "allowed_urls"),
        (400, "ModelException", "Custom pip package installation failed for model m", "pip's own reason"),
        (500, INTERNAL, "Failed to start workers for model m", "fix it, and register"),
        (400, "InvalidKeyException", "expired", "token.* returns a valid one, renewed if it has expired"),
        (500, INTERNAL, "Worker died.", "responseTimeout, or answered with more than max_response_size"),
        (500, INTERNAL, "Worker died.", "if this request is, each retry ends another worker"),
        (500, "ConcurrentModificationException", "", "let its requests end first"),
        (500, "NullPointerException", 'Cannot invoke "….Job.isControlCmd()"', "let its requests end first"),
        (503, "ServiceUnavailableException", "No worker is available to serve", "or the queue is full"),
        (503, INTERNAL, "number of batch response mismatched", "exactly one plain item"),
        (503, INTERNAL, "Prediction failed", "first traceback"),
        (507, INTERNAL, "Out of resources", "ran out of memory"),
        (507, INTERNAL, "Worker died.", "was killed"),
        (
            200,
            "NotTorchServe",
            "What answers at http://127.0.0.1:1 is not TorchServe",
            "Is the server running",
        ),
        (400, "BadRequest", "The body has no input", "has no input[.]$"),  # the handler's own sentence
        (418, "Teapot", "", "418 Teapot[.]$"),
    ],
)
def test_an_api_error_says_what_to_do(status: int, kind: str, message: str, advice: str) -> None:
    error = ApiError(status, kind, message)
    assert (error.status, error.kind, error.message) == (status, kind, message)
    with pytest.raises(ApiError, match=advice):
        raise error


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (TlsError("https://127.0.0.1:1 was not asked: …"), "give the client verify="),
        (
            ConnectionFailed("Nothing answers at http://127.0.0.1:1."),
            r"127\.0\.0\.1:1\. Is the server running",
        ),
        (AnswerBrokeOff("The answer from http://127.0.0.1:1 broke off."), "first traceback"),
    ],
)
def test_an_error_without_an_answer_says_what_to_do(error: NoAnswer, advice: str) -> None:
    with pytest.raises(NoAnswer, match=advice):
        raise error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionFailed(""), True),
        (AnswerBrokeOff(""), True),
        (TimedOut(""), True),
        (TlsError(""), False),
        (NoKeyFile(""), False),
        *((ApiError(status, INTERNAL, "Worker died."), True) for status in (500, 502, 504, 507)),
        (ApiError(507, INTERNAL, "Out of resources"), False),
        (ApiError(503, INTERNAL, "Prediction failed"), False),
        (ApiError(503, "ServiceUnavailableException", "No worker is available"), True),
        *((ApiError(status, "Refused", ""), False) for status in (400, 404, 413, 429)),
    ],
)
def test_what_may_be_sent_again(error: TutorialError, expected: bool) -> None:
    assert is_retryable(error) is expected


@pytest.mark.parametrize(
    ("log", "hint"),
    [
        ("java.net.BindException: Address already in use", "ports is taken"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'java'", "JAVA_HOME"),
        ("java.lang.UnsupportedClassVersionError: org/pytorch", "11 or newer"),
        ("ModuleNotFoundError: No module named 'captum'", "package is missing"),
        ("PermissionError: [Errno 13] Permission denied", "may not"),
        ("java.lang.OutOfMemoryError: unable to create native thread: possibly out of memory", "pids-limit"),
        ("RuntimeError: can't start new thread", "limit on processes and threads"),
        ("BlockingIOError: [Errno 11] Resource temporarily unavailable", "ulimit -u"),
        ("serve.sh: fork: retry: Resource temporarily unavailable", "ulimit -u"),
    ],
)
def test_a_well_known_line_of_a_log_has_a_hint(log: str, hint: str) -> None:
    assert hint in hint_for_log(f"a line\n{log}\nanother") and hint_for_log("a line") == ""


def test_messages_end_in_the_log_or_say_that_it_is_empty() -> None:
    assert str(StartTimeout(3, "the model m", "")).endswith("(it printed nothing)")
    assert str(WorkerFailed("ValueError: no", "A hint.")).endswith("is the cause:\nValueError: no")


def test_every_error_is_a_tutorial_error() -> None:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert issubclass(kind, TutorialError)


def test_the_ground_floor_imports_nothing_of_the_package() -> None:
    code = "import tutorial_lib.errors, sys; print(*(n for n in sys.modules if n.startswith('tutorial_lib')))"
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output.split() == ["tutorial_lib", "tutorial_lib.errors"]
