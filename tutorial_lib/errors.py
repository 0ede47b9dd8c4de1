"""Defines every error that the library raises on purpose: a message says what was wrong, and what to do."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable


class TutorialError(Exception):
    """The parent of all errors raised on purpose by tutorial_lib.

    >>> issubclass(PortInUse, TutorialError)
    True
    """


class JavaNotFound(TutorialError):
    """No Java runtime that TorchServe can use was found."""


class PackageMissing(TutorialError, ImportError):
    """A package that only a part of this library needs is not installed.

    >>> print(PackageMissing("load_test", "aiohttp", "torchserve-course[load]"))
    load_test needs the package aiohttp, which is not installed. Install it: pip install ...
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


class _Exited(TutorialError):
    _what: str

    def __init__(self, returncode: int | None, log_tail: str, hint: str = "") -> None:
        self.returncode, self.log_tail = returncode, log_tail
        super().__init__(
            f"{self._what} ended with exit status {returncode}. {hint}".rstrip()
            + f"\nIts last lines:\n{log_tail or '(it printed nothing)'}"
        )


class ServerExited(_Exited):
    """The server's process ended when it should be running.

    Attributes:
        returncode: exit status of the launcher; None if it is unknown.
        log_tail: the last lines that the server printed.
    """

    _what = "TorchServe"


class ContainerExited(_Exited):
    """A container ended when it should be running.

    Attributes:
        returncode: its exit status.
        log_tail: the last lines that it printed.
    """

    _what = "The container"


class StartTimeout(TutorialError):
    """The server was not ready before a deadline, and was stopped.

    Attributes:
        log_tail: the last lines that the server printed.
    """

    def __init__(
        self,
        seconds: float | None,
        waiting_for: str,
        log_tail: str,
        advice: str = "Give it more time with startup_timeout=",
    ) -> None:
        self.log_tail = log_tail
        within = "in time" if seconds is None else f"within {seconds:g} s"
        super().__init__(
            f"TorchServe was not ready {within}: {waiting_for}. It was stopped. "
            f"{advice}, or look for the cause in its last lines:\n"
            f"{log_tail or '(it printed nothing)'}"
        )


class WorkerFailed(TutorialError):
    """A model's worker died while loading the model.

    Attributes:
        traceback: the traceback that ended the worker, from the model log; "(no traceback)" and the last
            lines if no exception ended it.
    """

    def __init__(self, traceback: str, hint: str = "") -> None:
        self.traceback = traceback
        what = (
            "The last lines of the log"
            if traceback.startswith("(no ")
            else "The traceback in the model log, which is the cause"
        )
        super().__init__(
            f"A worker died while it loaded its model. {hint}".rstrip() + f"\n{what}:\n{traceback}"
        )


class EngineNotFound(TutorialError):
    """Neither podman nor docker is installed and works.

    >>> EngineNotFound([])
    EngineNotFound('No podman and no docker was found on PATH. Install one: `apt install podman`...')
    """

    def __init__(self, tried: list[str], wanted: str | None = None) -> None:
        if tried:
            message = "No container engine works here. " + " ".join(tried)
        elif wanted:
            message = f"CONTAINER_ENGINE is {wanted!r}, and no such program is on PATH. Unset it, or fix it."
        else:
            message = (
                "No podman and no docker was found on PATH. "
                "Install one: `apt install podman` is enough, and needs no daemon."
            )
        super().__init__(message)


class EngineError(TutorialError):
    """A command of the container engine failed.

    Attributes:
        output: the last lines that it printed.
    """

    def __init__(self, command: str, output: str) -> None:
        self.output = output
        super().__init__(f"`{command}` failed: {output}")


class ImageError(TutorialError):
    """An image could not be built, pushed or pulled, or is not there."""


class OutOfMemory(TutorialError):
    """A container's memory limit is too small for the server and its workers.

    >>> OutOfMemory("256m", "The memory limit was hit: 2 processes were killed.")
    OutOfMemory('The memory limit of 256m is too small. The memory limit was hit: ...')
    """

    def __init__(self, limit: str | None, cause: str) -> None:
        of = f" of {limit}" if limit else ""
        super().__init__(
            f"The memory limit{of} is too small. {cause.rstrip('.')}. "
            'Give it more (memory="2g"), or use fewer workers or a smaller model.'
        )


class _RequestFailed(TutorialError):
    def __init__(self, message: str, what: str, advice: str) -> None:
        self.message, self._what = message, what.rstrip(".")
        super().__init__(f"{self._what}. {advice}".rstrip())

    def add_cause(self, cause: str, *, in_place_of_advice: bool = False) -> None:
        """Adds to the error's text what the server's log says about the failure.

        >>> error = ApiError(503, "InternalServerException", "Prediction failed")
        >>> error.add_cause("ValueError: no price", in_place_of_advice=True)
        >>> print(error)
        503 InternalServerException: Prediction failed. ValueError: no price
        """
        self.args = (f"{self._what}. {cause}" if in_place_of_advice else f"{self}\n{cause}",)


class NoAnswer(_RequestFailed):
    """A request got no answer, or only the beginning of one; the subclasses say why.

    Attributes:
        kind: the name of the class.
        message: what happened, without the advice on it.

    >>> ConnectionFailed("Nothing answers at http://127.0.0.1:1")
    ConnectionFailed('Nothing answers at http://127.0.0.1:1. Is the server running, and is that its address?')
    """

    _advice = "Is the server running, and is that its address?"

    def __init__(self, message: str) -> None:
        self.kind = type(self).__name__
        super().__init__(message, message, self._advice)


class ConnectionFailed(NoAnswer):
    """The server could not be reached."""


class AnswerBrokeOff(ConnectionFailed):
    """The connection ended in the middle of an answer."""

    _advice = "The handler failed, or its worker died: the first traceback in the model log says where."


class TimedOut(NoAnswer):
    """The answer, or what was waited for, did not come in time."""


class TlsError(NoAnswer):
    """The server's certificate is not trusted, or is not for this address."""

    _advice = (
        "The certificate is not trusted, or not for this address: give the client verify=, the file "
        "of the server's certificate or of the authority that signed it."
    )


class NoKeyFile(NoAnswer):
    """No request was sent: the file that the server writes its access tokens to can't be read."""


class ApiError(_RequestFailed):
    """The server answered a call with an error, or with something that is not TorchServe's.

    Attributes:
        status: the HTTP status code.
        kind: TorchServe's name of the error ("InvalidKeyException", …).
        message: the server's message.

    >>> ApiError(409, "ConflictStatusException", "Model version 1.0 is already registered")
    ApiError('409 ConflictStatusException: ... That version is there already: unregister it first, ...')
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        self.status, self.kind, self.message = status, kind, message
        super().__init__(message, ": ".join(filter(None, (f"{status} {kind}", message))), _advice(self))


def is_retryable(error: TutorialError) -> bool:
    """Returns whether the same prediction, sent again, may be answered.

    "Worker died" does not show who ended the worker. If it was another request or the machine, a retry is
    answered. If it was this request, by an answer above max_response_size, by taking longer than
    responseTimeout or by crashing the handler, each retry ends another worker, and with it the requests of
    its batch. So set `retries` no higher than such a loss may cost.

    >>> is_retryable(ApiError(500, "InternalServerException", "Worker died."))
    True
    >>> is_retryable(ApiError(503, "InternalServerException", "Prediction failed"))
    False
    """
    if not isinstance(error, ApiError):
        return isinstance(error, ConnectionFailed | TimedOut)
    if error.status == 503:  # this kind is an error of the handler; the others, no worker or a full queue
        return error.kind != "InternalServerException"
    was_killed = error.status == 507 and "worker died" in error.message.lower()
    return was_killed or error.status in (500, 502, 504)


def is_stop_during_batch(error: ApiError) -> bool:
    """Returns whether a worker's batch ended while TorchServe 0.12 stopped that worker.

    >>> is_stop_during_batch(ApiError(500, "ConcurrentModificationException", ""))
    True
    """
    is_null = error.kind == "NullPointerException" and "Job.isControlCmd" in error.message
    return error.status == 500 and (is_null or error.kind == "ConcurrentModificationException")


def _is_unavailable(error: ApiError) -> bool:
    return error.status == 503 and is_retryable(error)


# What to do about an error answer, by the beginning of "status kind: message" or by a predicate. The first
# row that matches wins. The statuses and messages were observed with TorchServe 0.12.0.
_ADVICE: dict[str | Callable[[ApiError], bool], str] = {
    r"\d+ InvalidKeyException:": "The access token is missing, wrong or expired. server.token(…) returns a "
    "valid one, renewed if it has expired: send it as 'Authorization: Bearer …'. A client with "
    "token=KeyFile(…) renews its own. (The one in key_file.json may have expired.)",
    # These messages say what to do: the client's own, and those of handler.py's limit for a batch.
    r"\d+ (Redirected|ServiceUnavailable|ContentTooLarge|RequestEntityTooLarge):": "",
    r"\d+ NotTorchServe:": "Is the server running, and is that its address?",
    "401": "Send the container's key (container.token(…) has it) as 'Authorization: Bearer …'.",
    "507 .*died": "The worker was killed (SIGKILL), which is what Linux does when memory runs out; dmesg "
    "says whether it did. TorchServe starts the worker again: try again, as predict(…, retries=1) does, and "
    "if workers are killed again, use fewer workers, a smaller batch, or a smaller model.",
    ".*allowed URL": "Use an archive of the model store, or allow that address with config={'allowed_urls': "
    "…}.",
    ".*Custom pip package installation failed": "pip's own reason is in the server's log: "
    "server.log_tail(200) shows it. Correct the archive's requirements_file, or install the packages where "
    "the server runs.",
    ".*Failed to start workers": "Its worker died while it loaded the model: the first traceback in the "
    "model log is the cause. Unregister that version, fix it, and register it again.",
    ".*(number of batch response mismatched|Invalid model predict output)": "The handler must return a list "
    "with exactly one plain item for each request of the batch.",
    "507": "The worker ran out of memory: use fewer workers, a smaller batch, or a smaller model.",
    r".*: Invalid HTTP message\.$": "Was the name or the version too long? A whole URL may have 4,096 "
    "characters.",
    r"\d+ (InvalidModelException|DownloadArchiveException):|.*Failed to save model": "Is that a whole "
    "archive, and may the server read it? Build it again with build_archive.",
    ".*Model file already exists": "The URL must end in the name of an archive that the model store does "
    "not have yet.",
    "404 .*(not found at|allowed in url|empty url)": "No such archive is in the server's model store: build "
    "it there, and give its file name.",
    "404 ModelVersionNotFoundException:": "management.describe_all(…) lists the versions of a model.",
    "404 ResourceNotFoundException:": "Is it the right address? Inference, management and metrics have one "
    "each.",
    "403 .*default version": "Make another version the default one first, with management.set_default(…).",
    "404": "Is the name right, and is the model registered? management.list_models() lists them.",
    "405": "Registering is off by default: start the server with model_api=True.",
    "409": "That version is there already: unregister it first, or register another version.",
    "413": "Send less in one request, or raise max_request_size (bytes) with config={…}.",
    "500 .*died": "The worker crashed, took longer than responseTimeout, or answered with more than "
    "max_response_size (6,553,500 bytes unless config={…} says otherwise); server.log_tail(50) shows which. "
    "TorchServe starts it again. If another request may be the cause, try again, as predict(…, retries=1) "
    "does; if this request is, each retry ends another worker.",
    ".*: Interrupted while cleaning resources": "TorchServe could not end a worker. Is the program `kill` "
    "on the server's PATH (Debian: procps)?",
    is_stop_during_batch: "TorchServe 0.12 fails so if a worker's batch ends while TorchServe stops the "
    "worker. After an unregister, workers of that version may be left until the server stops. Next time, "
    "let its requests end first: make another version the default one.",
    _is_unavailable: "No worker is there to answer, or the queue is full: management.describe(…) says "
    "which. Scale the model to at least one; or try again in a moment, send less at once, or raise "
    "jobQueueSize or the workers.",
    "503": "The handler failed: the first traceback in the model log says where.",
}


def _advice(error: ApiError) -> str:
    """Returns what to do about an error answer; "" if no row matches."""
    text = f"{error.status} {error.kind}: {error.message}"
    for row, advice in _ADVICE.items():
        if re.match(row, text, re.IGNORECASE | re.DOTALL) if isinstance(row, str) else row(error):
            return advice
    return ""


_TOO_MANY_FILES = "This process may open no more files: close some, or raise the limit (`ulimit -n`)."
_DISK_FULL = (
    "Free some space or inodes (`df -h` and `df -i` show both), or set TMPDIR to a folder with room, before "
    "Python starts."
)
_OS_ADVICE = {
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _TOO_MANY_FILES),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _DISK_FULL),
    **dict.fromkeys((errno.EAGAIN, errno.ENOMEM), "Memory or process ids have run out: end other programs."),
}
EXHAUSTED = frozenset(_OS_ADVICE)  # the errors that say that this process or machine has no more of something


def explain_os_error(error: OSError) -> str:
    """Returns what the operating system refused, with the path, and what to do about it.

    >>> explain_os_error(OSError(errno.ENOSPC, "No space left on device", "/tmp/a"))
    'No space left on device: /tmp/a. Free some space or inodes ...'
    """
    path = f": {error.filename2 or error.filename}" if error.filename else ""
    advice = _OS_ADVICE.get(
        error.errno or 0, "Set TMPDIR to a folder that you may write to, before Python starts."
    )
    return f"{error.strerror or error}{path}. {advice}"


_TOO_MANY_THREADS = (
    "The limit on processes and threads is too small: raise it (a container's with "
    'options=["--pids-limit=2048"], a user\'s with ulimit -u).'
)
# What well-known lines mean: TorchServe's own, and those with which an exception ends. The first row that
# matches a line wins.
_LOG_HINTS = {
    "transport error 202": "A debugger's port is taken: see JAVA_TOOL_OPTIONS in the environment.",
    "Java heap space": "The JVM has too little memory: see -Xmx in vmargs, or in JAVA_TOOL_OPTIONS.",
    "unable to create native thread|pthread_create failed|[Tt]hread creation failed": _TOO_MANY_THREADS,
    r"can't start new thread|(fork|error=11|Errno 11).*temporarily unavailable": _TOO_MANY_THREADS,
    "No space left on device": "A disk is full, or has no room for more files: free some. For the temporary "
    "folder, TMPDIR may name another disk, with a short path.",
    "Too many open files": "It may not open more files: raise the limit (ulimit -n).",
    "Address already in use": "One of its ports is taken.",
    "UnsupportedClassVersionError": "Its Java is too old: 11 or newer is needed.",
    "java not found": "It found no Java: check JAVA_HOME.",
    "No such file or directory: 'java'": "It found no Java: check JAVA_HOME.",
    r"^ModuleNotFoundError: No module named '([^']+)'": "A Python package is missing in the environment that "
    r"runs TorchServe: \1. Install it there; if \1 is a file of yours, give it in extra_files=.",
    "^ModuleNotFoundError": "A Python package is missing in the environment that runs TorchServe.",
    r"PermissionError|AccessDenied|\(Permission denied\)": "It may not write or read one of its files.",
}
_PRINTED_BY_A_WORKER = " MODEL_LOG - "


def hint_for_log(log: str) -> str:
    """Returns what to do about a server that failed, by the well-known lines of its log.

    Args:
        log: the last lines of the log, or the line that names an exception. Lines that a worker printed are
            not looked at: a handler may print anything.

    Returns:
        A sentence; "" if no well-known line is in the log.

    >>> hint_for_log("java.net.BindException: Address already in use")
    'One of its ports is taken.'
    """
    lines = [line for line in log.splitlines() if _PRINTED_BY_A_WORKER not in line]
    for pattern, hint in _LOG_HINTS.items():
        if found := next(filter(None, (re.search(pattern, line) for line in lines)), None):
            return found.expand(hint)
    return ""
