"""The dialect CometAPI serves: `POST /flux/v1/{model}`, `GET /flux/v1/get_result`, Bearer.

The same result object; errors carry CometAPI's `error` beside the common keys, and an unknown task is a 200.
"""

from __future__ import annotations

from collections.abc import Mapping

from fluxserve import errors as e
from fluxserve.api.bfl import render_result, render_unknown
from fluxserve.api.dialect import Body, Dialect
from fluxserve.errors import FluxserveError, JsonValue

#: `error.code` by class; the nearest base class counts.
CODES: dict[type[FluxserveError], str] = {
    e.NotAuthenticated: "invalid_api_key",
    e.InsufficientCredits: "insufficient_quota",
    e.UnknownModel: "model_not_found",
    e.NotFound: "not_found",
    e.TooManyActiveTasks: "rate_limit_exceeded",
    e.TooManyRequests: "rate_limit_exceeded",
    e.TooManyStreams: "rate_limit_exceeded",
    e.RequestError: "invalid_request",
    e.FluxserveError: "server_error",
}


def _render_error(error: FluxserveError, body: Mapping[str, JsonValue]) -> Body:
    code = next(CODES[cls] for cls in type(error).__mro__ if cls in CODES)
    return {
        **body,
        "error": {"message": error.message, "type": "comet_api_error", "param": _param(error), "code": code},
    }


def _param(error: FluxserveError) -> str:
    """The first field the caller should look at."""
    if not isinstance(error, e.InvalidRequest) or not error.items:
        return ""
    loc = error.items[0].get("loc")
    return str(loc[-1]) if isinstance(loc, (list, tuple)) and len(loc) > 1 else ""


COMETAPI = Dialect(
    name="cometapi",
    title="CometAPI",
    prefix="/flux/v1",
    unknown_task_status=200,
    render_error=_render_error,
    render_result=render_result,
    render_unknown=render_unknown,
)
