"""A small client for the Flux image generation API: from a prompt to its picture in one call, or step by step.

It stands alone: it imports nothing else of fluxserve, and speaks to any server of this API.

>>> from fluxserve.client import generate
>>> generate("a red apple", width=256, height=256).save("apple.jpeg")
PosixPath('apple.jpeg')
"""

from fluxserve.client.answers import Entry, Progress, Result, Task
from fluxserve.client.async_client import AsyncClient
from fluxserve.client.calls import origin_of
from fluxserve.client.client import Client, generate
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
    WebhookRefused,
)
from fluxserve.client.pictures import Picture
from fluxserve.client.webhooks import verify

__all__ = [
    "ApiError",
    "AsyncClient",
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
    "WebhookRefused",
    "generate",
    "origin_of",
    "verify",
]
