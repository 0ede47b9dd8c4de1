"""What a server and a container have in common: three addresses, and a client for each."""

from __future__ import annotations

from abc import ABC, abstractmethod

from tutorial_lib.client import InferenceClient, KeyFile, ManagementClient, MetricsClient


class Addresses(ABC):
    """Three addresses, and a client for each once it is connected.

    Attributes:
        inference: asks for predictions.
        management: registers, describes and scales models.
        metrics: reads counters.
    """

    inference: InferenceClient
    management: ManagementClient
    metrics: MetricsClient

    @abstractmethod
    def _address(self, name: str) -> str:
        """The address of that name; a TutorialError where there is none yet."""

    @property
    def inference_address(self) -> str:
        """Where predictions are asked for, as "http://127.0.0.1:8080"."""
        return self._address("inference")

    @property
    def management_address(self) -> str:
        """Where models are registered, described and scaled."""
        return self._address("management")

    @property
    def metrics_address(self) -> str:
        """Where Prometheus reads metrics."""
        return self._address("metrics")

    def _connect_clients(
        self,
        inference: str | KeyFile | None,
        management: str | KeyFile | None,
        verify: bool | str = True,
    ) -> None:
        """New clients, with the token of each address; metrics go with inference."""
        self.inference = InferenceClient(self.inference_address, token=inference, verify=verify)
        self.management = ManagementClient(self.management_address, token=management, verify=verify)
        self.metrics = MetricsClient(self.metrics_address, token=inference, verify=verify)
