"""What TorchServe's management address answers, as types."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class Worker(TypedDict):
    """A worker, as `describe` lists it; memoryUsage is in bytes, startTime in ISO 8601."""

    id: str
    startTime: str
    status: str
    memoryUsage: int
    pid: int
    gpu: bool
    gpuUsage: str


class JobQueueStatus(TypedDict):
    """How many more requests a version's queue takes, and how many wait in it."""

    remainingCapacity: int
    pendingRequests: int


class ModelDescription(TypedDict):
    """A version of a model, as TorchServe describes it; delays are in ms, timeouts in s.

    customizedMetadata is there if it was asked for: it is what the handler's `describe_handle` returns.
    """

    modelName: str
    modelVersion: str
    modelUrl: str
    runtime: str
    minWorkers: int
    maxWorkers: int
    batchSize: int
    maxBatchDelay: int
    responseTimeout: NotRequired[int]
    startupTimeout: NotRequired[int]
    maxRetryTimeoutInSec: NotRequired[int]
    clientTimeoutInMills: NotRequired[int]
    parallelType: NotRequired[str]
    parallelLevel: NotRequired[int]
    deviceType: NotRequired[str]
    continuousBatching: NotRequired[bool]
    useJobTicket: NotRequired[bool]
    useVenv: NotRequired[bool]
    stateful: NotRequired[bool]
    sequenceMaxIdleMSec: NotRequired[int]
    sequenceTimeoutMSec: NotRequired[int]
    maxNumSequence: NotRequired[int]
    maxSequenceJobQueueSize: NotRequired[int]
    loadedAtStartup: bool
    workers: list[Worker]
    jobQueueStatus: NotRequired[JobQueueStatus]
    customizedMetadata: NotRequired[Any]


class ModelEntry(TypedDict):
    """A registered model: its name, and the archive that its default version came from."""

    modelName: str
    modelUrl: str


class ModelPage(TypedDict):
    """A page of the list of models; nextPageToken is there if more may follow."""

    models: list[ModelEntry]
    nextPageToken: NotRequired[str]


class Status(TypedDict):
    """The server's message about what it did: "Workers scaled to 2 for model: m"."""

    status: str
