"""A small client for the Flux image generation API: create, wait or follow, download; cancel and list.

It stands alone: it imports nothing else of fluxserve, and speaks to any server of this API.
"""

from fluxserve.client.answers import Entry, Picture, Progress, Result, Task
from fluxserve.client.client import Client, origin_of
from fluxserve.client.errors import (
    ApiError,
    AuthenticationFailed,
    ClientError,
    InsufficientCredits,
    RequestRejected,
    ServerUnavailable,
    TaskCancelled,
    TaskFailed,
    TaskModerated,
    TaskNotFound,
    TaskTimeout,
    TooManyRequests,
)

__all__ = [
    "ApiError",
    "AuthenticationFailed",
    "Client",
    "ClientError",
    "Entry",
    "InsufficientCredits",
    "Picture",
    "Progress",
    "RequestRejected",
    "Result",
    "ServerUnavailable",
    "Task",
    "TaskCancelled",
    "TaskFailed",
    "TaskModerated",
    "TaskNotFound",
    "TaskTimeout",
    "TooManyRequests",
    "origin_of",
]
