"""Requests predictions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack

import requests

from tutorial_lib.clients.arguments import check_headers, check_int
from tutorial_lib.clients.bodies import decode, encode
from tutorial_lib.clients.client import Client, model_path
from tutorial_lib.clients.transport import parts_of

_MOST_RETRIES = 1000


@dataclass(frozen=True)
class Answer:
    """A model's answer, as the server sent it.

    Attributes:
        status: the HTTP status code, 200 to 299.
        headers: the answer's headers; a look-up ignores the case of the name.
        content: the body.

    >>> Answer(200, {}, b'["Positive"]').value
    ['Positive']
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes

    @property
    def value(self) -> Any:
        """The decoded body: JSON, else text, else the bytes (see `decode`)."""
        return decode(self.content, self.headers.get("Content-Type"))


class _Options(TypedDict, total=False):
    """The options of `InferenceClient.predict`, which its other forms take too."""

    files: Mapping[str, Any] | None
    headers: Mapping[str, str] | None
    version: str | None
    timeout: float | None
    retries: int


class InferenceClient(Client):
    """Requests predictions, and checks whether the server is up.

    >>> with InferenceClient("http://127.0.0.1:8080", token="the access token") as client:
    ...     client.address  # and client.predict("my_model", {"input": ["great day"]})
    'http://127.0.0.1:8080'
    """

    def ping(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Returns {"status": "Healthy"} as soon as the server is up, which is before its models are ready.

        Args:
            timeout: seconds to wait for the answer; None for the client's.

        Raises:
            NoAnswer: nothing answers.
            ApiError: the server refuses the call, or what answers is not TorchServe.
        """
        answer: dict[str, Any] = self._json("GET", "/ping", timeout=timeout)
        return answer

    def predict(
        self,
        model: str,
        data: Any = None,
        *,
        files: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        version: str | None = None,
        timeout: float | None = None,
        retries: int = 0,
    ) -> Any:
        """Sends one request to a model.

        A worker, a replica or a host can be lost while it works on a request. A prediction changes
        nothing, so it may be sent again, up to `retries` times, after an error that may pass: no answer, a
        worker that died or was killed, 500, 502, 504, and a 503 because no worker is there. The pauses
        double from 0.1 s to 10 s; each is shortened at random by up to a half, so that clients that were
        refused together don't return together.

        Args:
            model: the name it is registered as.
            data: bytes (or a file opened with "rb") are sent unchanged, a str as text/plain, anything else
                as JSON; beside `files`, a dict of form fields.
            files: multipart parts by name: bytes or a file, as {"data": open("cat.png", "rb")}; a list of
                them sends several parts of that name; a tuple (file name, content[, content type]) names one.
            headers: more headers, such as {"X-Request-Id": "7"}; a Content-Type wins over that of `data`.
            version: a version; None for the model's default one.
            timeout: seconds to wait for the answer; with retries, for each answer.
            retries: how often to send again. If this request itself ends the worker, each retry ends another
                one (see `errors.is_retryable`).

        Returns:
            The answer's JSON; its text if it is not JSON; its bytes if it is neither, as a picture (see
            `decode`).

        Raises:
            ValueError: an argument can't be sent.
            ApiError: the answer is not a 2xx.
            NoAnswer: no answer came.
        """
        options = _Options(files=files, headers=headers, version=version, timeout=timeout, retries=retries)
        return self.predict_raw(model, data, **options).value

    def predict_raw(self, model: str, data: Any = None, **options: Unpack[_Options]) -> Answer:
        """Sends one request to a model, and returns the answer with its status, headers and bytes.

        Args:
            model, data, options: as for `predict`, with the same errors.

        Returns:
            The answer; its `value` is what `predict` returns.
        """
        response = self._predict(model, data, **options)
        return Answer(response.status_code, response.headers, response.content)

    def predict_stream(
        self, model: str, data: Any = None, *, lines: bool = False, **options: Unpack[_Options]
    ) -> Iterator[bytes]:
        """Sends one request to a model that streams its answer, and yields the parts as they come.

        The call returns when the answer begins. Leaving the iterator early (`break`, `close()`) closes the
        connection.

        Args:
            model, data, options: as for `predict`. `timeout` is for the beginning, and then for each part;
                after the answer has begun, the request is not sent again.
            lines: yield whole lines, without their ends, for a handler that sends JSON lines. A part is
                what the handler sent at once, but a proxy may cut or join parts.

        Raises:
            ValueError, ApiError, NoAnswer: as for `predict`.
            AnswerBrokeOff: the answer ended early; the parts before that were yielded.
        """
        response = self._predict(model, data, stream=True, **options)
        timeout = options.get("timeout")
        return parts_of(response, lines, self._timeout[1] if timeout is None else timeout, os.getpid())

    def _predict(
        self,
        model: str,
        data: Any,
        *,
        files: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        version: str | None = None,
        timeout: float | None = None,
        retries: int = 0,
        stream: bool = False,
    ) -> requests.Response:
        body = encode(data, files)
        return self._request(
            "POST",
            model_path(model, version, of="predictions"),
            timeout=timeout,
            retries=check_int("retries", retries, 0, _MOST_RETRIES),
            data=body.content,
            headers=check_headers(headers, body.content_type),
            stream=stream,
        )
