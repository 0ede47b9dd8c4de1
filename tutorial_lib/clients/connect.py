"""Connects to a server that somebody else started: in a container, on Kubernetes or on Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from tutorial_lib.clients.inference import InferenceClient
from tutorial_lib.clients.management import ManagementClient
from tutorial_lib.clients.metrics import MetricsClient
from tutorial_lib.clients.readiness import Readiness
from tutorial_lib.clients.tokens import KeyFile, TokenType
from tutorial_lib.errors import TutorialError

Token = str | KeyFile


def connect(
    address: str,
    *,
    token: Token | Mapping[TokenType, Token] | None = None,
    management: str | None = None,
    metrics: str | None = None,
    verify: bool | str = True,
) -> ConnectedServer:
    """Returns a running server's clients, as `TorchServe` has them; nothing is sent yet.

    Args:
        address: where predictions are answered, as "http://127.0.0.1:8080".
        token: an access token or a `KeyFile`, for all addresses; or one for each of the two kinds, as
            {"inference": "…", "management": "…"}; None for a server that asks for none.
        management: the address at which models are described; for Ray, `address` again.
        metrics: the address of the metrics.
        verify: for https, as for the clients.

    >>> connect("http://127.0.0.1:8080", management="http://127.0.0.1:8081")
    ConnectedServer(inference=http://127.0.0.1:8080, management=http://127.0.0.1:8081)
    """
    tokens: Mapping[TokenType, Token | None]
    tokens = token if isinstance(token, Mapping) else {"inference": token, "management": token}
    if unknown := tokens.keys() - {"inference", "management"}:
        raise ValueError(f"token has {', '.join(map(repr, unknown))}. Give 'inference' and 'management'.")
    inference = tokens.get("inference")
    return ConnectedServer(
        InferenceClient(address, token=inference, verify=verify),
        ManagementClient(management, token=tokens.get("management"), verify=verify) if management else None,
        MetricsClient(metrics, token=inference, verify=verify) if metrics else None,
        tokens,
    )


class ConnectedServer:
    """A server that somebody else started; at the end of a `with` block it runs on.

    Attributes:
        inference: requests predictions.
        token_auth: whether predictions are sent with an access token.
    """

    def __init__(
        self,
        inference: InferenceClient,
        management: ManagementClient | None,
        metrics: MetricsClient | None,
        tokens: Mapping[TokenType, Token | None],
    ) -> None:
        self.inference = inference
        self.token_auth = tokens.get("inference") is not None
        self._management, self._metrics, self._tokens = management, metrics, tokens

    @property
    def management(self) -> ManagementClient:
        """Registers, describes and scales models."""
        if self._management is None:
            raise _not_given("management=")
        return self._management

    @property
    def metrics(self) -> MetricsClient:
        """Reads counters."""
        if self._metrics is None:
            raise _not_given("metrics=")
        return self._metrics

    @property
    def inference_address(self) -> str:
        return self.inference.address

    @property
    def management_address(self) -> str:
        return self.management.address

    @property
    def metrics_address(self) -> str:
        return self.metrics.address

    def token(self, kind: TokenType) -> str:
        """Returns the current access token.

        Raises:
            TutorialError: no token of that kind was given.
        """
        token = self._tokens.get(kind)
        if token is None:
            raise _not_given(f"token={{{kind!r}: …}}")
        return token.token(kind) if isinstance(token, KeyFile) else token

    def wait_until_ready(self, *, timeout: float = 120, models: Sequence[str] = ()) -> Self:
        """Waits until every model has a READY worker; without a management address, until a ping is answered.

        Args:
            timeout: seconds to wait.
            models: the models to wait for; none for all that the server has.

        Raises:
            TimedOut: the server was not ready in time; the message says what was missing.
            ApiError: the server refuses the access token, or is not TorchServe.
            TlsError: its certificate is not trusted.
        """
        Readiness(self.inference, self._management, models).wait(timeout)
        return self

    def close(self) -> None:
        """Closes the connections."""
        for client in filter(None, (self.inference, self._management, self._metrics)):
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        clients = {"inference": self.inference, "management": self._management, "metrics": self._metrics}
        known = ", ".join(f"{name}={client.address}" for name, client in clients.items() if client)
        return f"{type(self).__name__}({known})"


def _not_given(argument: str) -> TutorialError:
    return TutorialError(f"This connection was made without {argument}: give it to connect(…).")
