"""Every error that the library raises on purpose: one sentence on what was wrong, one on what to do."""

from __future__ import annotations


class TutorialError(Exception):
    """The parent of all errors raised on purpose by tutorial_lib.

    >>> issubclass(PortInUse, TutorialError)
    True
    """


class JavaNotFound(TutorialError):
    """No Java runtime that TorchServe can use was found."""


class PackageMissing(TutorialError, ImportError):
    """A package is not installed that only a part of this library needs.

    >>> print(PackageMissing("load_test", "aiohttp", "torchserve-course[load]"))
    load_test needs the package aiohttp, which is not installed. Install it: pip install 'torchserve-course[load]'
    """

    def __init__(self, what: str, package: str, requirement: str) -> None:
        super().__init__(
            f"{what} needs the package {package}, which is not installed. "
            f"Install it: pip install '{requirement}'"
        )


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


class EngineNotFound(TutorialError):
    """Neither podman nor docker is there and works.

    >>> EngineNotFound([])
    EngineNotFound('No podman and no docker was found on PATH. Install one: `apt install podman`...')
    """

    def __init__(self, tried: list[str], wanted: str | None = None) -> None:
        if tried:
            message = "No container engine works here. " + " ".join(tried)
        elif wanted:
            message = f"CONTAINER_ENGINE is {wanted!r}, and no such program is on PATH. Unset it, or mend it."
        else:
            message = (
                "No podman and no docker was found on PATH. "
                "Install one: `apt install podman` is enough, and needs no daemon."
            )
        super().__init__(message)


class EngineError(TutorialError):
    """A command of the container engine failed.

    Attributes:
        said: what it printed, its last lines.
    """

    def __init__(self, command: str, said: str) -> None:
        self.said = said
        super().__init__(f"`{command}` failed: {said}")


class ImageError(TutorialError):
    """An image could not be built, pushed or pulled, or is not there."""


class ContainerExited(TutorialError):
    """A container ended when it should be running.

    Attributes:
        returncode: its exit status.
        log_tail: the last lines that it printed.
    """

    def __init__(self, returncode: int, log_tail: str, hint: str = "") -> None:
        self.returncode, self.log_tail = returncode, log_tail
        super().__init__(
            f"The container ended with exit status {returncode}. {hint}".rstrip()
            + f"\nIts last lines:\n{log_tail or '(it printed nothing)'}"
        )


class OutOfMemory(TutorialError):
    """A container's memory limit is too small for the server and its workers.

    >>> OutOfMemory("256m", "The memory limit was hit: 2 processes were killed.")
    OutOfMemory('The memory limit of 256m is too small. The memory limit was hit: ...')
    """

    def __init__(self, limit: str | None, said: str) -> None:
        of = f" of {limit}" if limit else ""
        super().__init__(
            f"The memory limit{of} is too small. {said.rstrip('.')}. "
            'Give it more (memory="2g"), or use fewer workers or a smaller model.'
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
        said = ": ".join(part for part in (f"{status} {kind}" if status else kind, message) if part)
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
    if status == 401:
        return "Send the container's key (container.token(…) has it) as 'Authorization: Bearer …'."
    if status == 507 and "died" in message.lower():
        return (
            "The worker was killed (SIGKILL), which is what Linux does when memory runs out; dmesg says "
            "whether it did. TorchServe starts it anew: try again, as predict(…, retries=1) does, and if "
            "it goes on, use fewer workers, a smaller batch, or a smaller model."
        )
    if kind == "SSLError":
        return (
            "The certificate is not trusted, or not for this address: give the client verify=, the file "
            "of the server's certificate or of the authority that signed it."
        )
    if "allowed URL" in message:
        return "Use an archive of the model store, or allow that address with config={'allowed_urls': …}."
    if "Failed to start workers" in message:
        return (
            "Its worker died while it loaded the model: the first traceback in the model log is the cause. "
            "Unregister that version, mend it, and register it again."
        )
    if "number of batch response mismatched" in message or "Invalid model predict output" in message:
        return "The handler must return a list with exactly one plain item for each request of the batch."
    if status == 507:
        return "The worker ran out of memory: use fewer workers, a smaller batch, or a smaller model."
    if kind == "InvalidArgument":
        return ""  # the message says what to give
    if message == "Invalid HTTP message.":
        return "Was the name or the version too long? A whole URL may have 4,096 characters."
    if kind in ("InvalidModelException", "DownloadArchiveException") or "Failed to save model" in message:
        return "Is that a whole archive, and may the server read it? Build it anew with build_archive."
    if "Model file already exists" in message:
        return "The URL must end in the name of an archive that the model store does not have yet."
    if status == 404 and ("not found at" in message or "allowed in url" in message or "empty url" in message):
        return "No such archive is in the server's model store: build it there, and give its file name."
    if status == 404 and kind == "ModelVersionNotFoundException":
        return "management.describe_all(…) lists the versions of a model."
    if status == 404 and kind == "ResourceNotFoundException":
        return "Is it the right address? Inference, management and metrics have one each."
    if status == 403 and "default version" in message:
        return "Make another version the default one first, with management.set_default(…)."
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
            "Try again, as predict(…, retries=1) does; server.log_tail() shows the cause."
        )
    if status == 503 and "no worker" in message.lower():  # it says so for a full queue too
        return (
            "No worker is there to answer, or the queue is full: management.describe(…) says which. "
            "Scale the model to at least one; or try again in a moment, send less at once, or raise "
            "jobQueueSize or the workers."
        )
    if status == 503:
        return "The handler failed: the first traceback in the model log says where."
    if status == 0:
        return "Is the server running, and is that its address?"
    return ""
