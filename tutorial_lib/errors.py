"""Every error that the library raises on purpose: one sentence on what was wrong, one on what to do."""

from __future__ import annotations


class TutorialError(Exception):
    """The parent of all errors raised on purpose by tutorial_lib.

    >>> issubclass(PortInUse, TutorialError)
    True
    """


class JavaNotFound(TutorialError):
    """No Java runtime that TorchServe can use was found."""


class ExportError(TutorialError):
    """The model could not be fetched, loaded, or written whole."""


class ArchiveError(TutorialError):
    """A model archive, or something that should go into one, is missing or broken."""


class PortInUse(TutorialError):
    """A port that was asked for is taken.

    >>> PortInUse("inference", 8080)
    PortInUse('The inference port 8080 is taken. Choose another one, or leave ports=None for free ones.')
    """

    def __init__(self, name: str, port: int) -> None:
        self.port = port
        super().__init__(
            f"The {name} port {port} is taken. Choose another one, or leave ports=None for free ones."
        )


class ServerExited(TutorialError):
    """The server's process ended when it should be running.

    Attributes:
        returncode: exit status of the launcher; None where it can't be known.
        log_tail: the last lines that the server printed.
    """

    def __init__(self, returncode: int | None, log_tail: str, hint: str = "") -> None:
        self.returncode = returncode
        self.log_tail = log_tail
        super().__init__(
            f"TorchServe ended with exit status {returncode}. {hint}".rstrip()
            + f"\nIts last lines:\n{log_tail or '(it printed nothing)'}"
        )


class StartTimeout(TutorialError):
    """The server was not ready before its one deadline, and was stopped.

    Attributes:
        log_tail: the last lines that the server printed.
    """

    def __init__(self, seconds: float, waiting_for: str, log_tail: str) -> None:
        self.log_tail = log_tail
        super().__init__(
            f"TorchServe was not ready within {seconds:g} s: {waiting_for}. It was stopped. "
            f"Give it more time with startup_timeout=, or look for the cause in its last lines:\n"
            f"{log_tail or '(it printed nothing)'}"
        )


class WorkerFailed(TutorialError):
    """A model's worker died while loading the model.

    Attributes:
        traceback: the first traceback of the model log, which is the true cause.
    """

    def __init__(self, traceback: str, hint: str = "") -> None:
        self.traceback = traceback
        super().__init__(
            f"A worker died while it loaded its model. {hint}".rstrip()
            + f"\nThe first traceback in the model log, which is the cause:\n{traceback}"
        )


class ApiError(TutorialError):
    """The server answered a call with an error.

    Attributes:
        status: HTTP status code; 0 where no answer came at all.
        kind: TorchServe's name of the error ("InvalidKeyException", …).
        message: what the server said.
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        self.status, self.kind, self.message = status, kind, message
        said = f"{status} {kind}: {message}" if status else f"{kind}: {message}"
        super().__init__(f"{said.rstrip('.')}. {_advice(status, kind, message)}".rstrip())


def _advice(status: int, kind: str, message: str) -> str:
    """What to do about an error answer; the statuses are those TorchServe 0.12.0 was seen to give.

    >>> _advice(404, "ModelNotFoundException", "Model not found: m")
    'Is the name right, and is the model registered? management.list_models() lists them.'
    """
    if kind == "InvalidKeyException":
        return (
            "The token is missing, wrong or expired: take the current one from key_file.json "
            "(server.token(…) does), and send it as 'Authorization: Bearer …'."
        )
    if status == 507:
        return "The worker ran out of memory: use fewer workers, a smaller batch, or a smaller model."
    if status == 404:
        return "Is the name right, and is the model registered? management.list_models() lists them."
    if status == 405:
        return "Registering is off by default: start the server with model_api=True."
    if status == 409:
        return "That version is there already: unregister it first, or register another version."
    if status == 413:
        return "Send less in one request, or raise max_request_size (bytes) with config={…}."
    if status == 500 and "died" in message.lower():
        return (
            "The worker crashed or took longer than responseTimeout; TorchServe starts it anew. "
            "Try again; server.log_tail() shows the cause."
        )
    if status == 503 and "no worker" in message.lower():
        return "No worker is there to answer: scale the model to at least one."
    if status == 503 and "busy" in message.lower():
        return "The queue is full: send less at once, or raise job_queue_size or the workers."
    if status == 503:
        return "The handler failed: the first traceback in the model log says where."
    if status == 0:
        return "Is the server running, and is that its address?"
    return ""
