"""What can go wrong, as one tree.

ClientError
├── ServerUnavailable         nobody answers, or 5xx after every retry
├── ApiError                  the server refused the request
│   ├── AuthenticationFailed  401, 403
│   ├── InsufficientCredits   402
│   ├── RequestRejected       400, 413, 422; `problems` names the fields
│   └── TooManyRequests       429 after every retry
├── TaskNotFound
├── TaskFailed
│   ├── TaskCancelled
│   └── TaskModerated
├── TaskTimeout               it may still become ready: wait again
└── WebhookRefused            not what the server sent with this secret, or not lately
"""

from __future__ import annotations

from collections.abc import Sequence


class ClientError(Exception):
    """The root; `str(error)` is a sentence for people."""


class ServerUnavailable(ClientError):
    """Nobody answers at the address, or the server keeps answering 5xx."""


class ApiError(ClientError):
    """The server refused the request."""

    def __init__(self, message: str, status: int, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.problems = tuple(problems)


class AuthenticationFailed(ApiError):
    """The key is missing or wrong."""


class InsufficientCredits(ApiError):
    """The account cannot pay."""


class RequestRejected(ApiError):
    """The request breaks the schema."""


class TooManyRequests(ApiError):
    """The key has too many unfinished tasks, or submits too fast."""


class TaskNotFound(ClientError):
    """The server does not know the task."""


class TaskFailed(ClientError):
    """The task ended in error."""


class TaskCancelled(TaskFailed):
    """The task was cancelled; it cost nothing."""


class TaskModerated(TaskFailed):
    """The prompt or the picture was refused."""


class TaskTimeout(ClientError):
    """The task was not ready in time. It goes on: wait again with the same task."""


class WebhookRefused(ClientError):
    """Not what the server sent with this secret, or not lately. Answer with 400 and do nothing."""
