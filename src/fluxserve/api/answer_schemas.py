"""JSON Schemas of every answer of the dialects: results, events, lists, errors.

What it does not know: which path answers what.
"""

from __future__ import annotations

from fluxserve.api.tasks import WORDS
from fluxserve.catalogue.schema import Schema
from fluxserve.store.deliveries import DeliveryState


def ref(name: str) -> Schema:
    """A reference to a schema of the document's components."""
    return {"$ref": f"#/components/schemas/{name}"}


_ID = {"type": "string", "format": "uuid"}
_NUMBER_OR_NULL = {"type": ["number", "null"]}
ERROR: Schema = {
    "type": "object",
    "required": ["detail", "message", "status_code"],
    "properties": {
        "detail": {"description": "What is wrong; of a 422, one entry per field."},
        "message": {"type": "string", "description": "The same in one line."},
        "status_code": {"type": "integer"},
    },
}
#: What a dialect adds to its errors.
ADDED: dict[str, Schema] = {
    "bfl": {},
    "cometapi": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {name: {"type": "string"} for name in ("message", "type", "param", "code")},
        }
    },
}
VALIDATION_ERROR: Schema = {
    "type": "object",
    "required": ["detail", "message", "status_code"],
    "properties": {
        "detail": {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["type", "loc", "msg"],
                        "properties": {
                            "type": {"type": "string"},
                            "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
                            "msg": {"type": "string"},
                            "input": {},
                            "ctx": {"type": "object"},
                        },
                    },
                },
            ]
        },
        "message": {"type": "string"},
        "status_code": {"type": "integer"},
    },
}
SUBMITTED: Schema = {
    "type": "object",
    "required": ["id", "polling_url", "cost", "input_mp", "output_mp"],
    "properties": {
        "id": _ID,
        "polling_url": {"type": "string", "format": "uri", "description": "Poll here; it needs no key."},
        "cost": {
            "type": "number",
            "description": "Credits reserved for the task; with pictures by URL the most it can cost.",
        },
        "input_mp": {"type": ["number", "null"], "description": "Null until pictures by URL are there."},
        "output_mp": {"type": ["number", "null"], "description": "Null until pictures by URL are there."},
        "status": {"type": "string", "description": "Only with webhook_url."},
        "webhook_url": {"type": "string", "description": "Only with webhook_url."},
    },
}
ESTIMATE: Schema = {
    "type": "object",
    "required": ["cost", "input_mp", "output_mp", "at_most"],
    "properties": {
        "cost": {"type": "number", "description": "Credits that the request would cost."},
        "input_mp": {"type": "number", "description": "Millions of pixels of its pictures."},
        "output_mp": {"type": "number", "description": "Millions of pixels of the answer."},
        "at_most": {"type": "boolean", "description": "Pictures come by URL: all three are the most they can be."},
    },
}
RESULT: Schema = {
    "type": "object",
    "required": ["id", "status", "result", "progress", "details", "preview"],
    "properties": {
        "id": {"type": "string"},
        "status": {
            "type": "string",
            "enum": [
                "Task not found", "Pending", "Processing", "Request Moderated", "Content Moderated", "Ready", "Error",
            ],
        },
        "result": {
            "type": ["object", "null"],
            "required": ["sample", "prompt", "seed", "start_time", "end_time", "duration"],
            "properties": {
                "sample": {"type": ["string", "null"], "description": "Link to the picture; null once it is deleted."},
                "prompt": {"type": "string"},
                "seed": {"type": "integer"},
                "start_time": {"type": "number"},
                "end_time": {"type": "number"},
                "duration": {"type": "number"},
            },
        },
        "progress": _NUMBER_OR_NULL,
        "details": {
            "type": ["object", "null"],
            "properties": {
                "input_pictures": {
                    "type": "object",
                    "additionalProperties": {"type": "string"},
                    "description": "By field, the sizes of the pictures that came with the request, as WxH.",
                },
                "Moderation Reasons": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "The categories for which the task was refused.",
                },
                "moderated": {
                    "type": "string",
                    "enum": ["prompt", "input_picture", "picture"],
                    "description": "What of it was refused.",
                },
                "cached": {"type": "boolean", "description": "True: the picture was drawn for an equal request."},
                "queue_position": {
                    "type": "integer",
                    "minimum": 0,
                    "description": "How many tasks that have made no step yet come before this one; until its own "
                    "first step is made.",
                },
                "eta_seconds": {
                    "type": "number",
                    "minimum": 0,
                    "description": "Seconds until the task is ready, as fast as its workers were lately; not there "
                    "while nobody knows.",
                },
            },
        },
        "preview": {
            "type": ["object", "null"],
            "description": "With `preview=true`: what a running task is heading for, at most 256 pixels wide and high.",
            "required": ["media_type", "data"],
            "properties": {
                "media_type": {"type": "string", "const": "image/jpeg"},
                "data": {"type": "string", "contentEncoding": "base64"},
            },
        },
        "cost": {"type": "number", "description": "Credits the task cost, once it has ended."},
    },
}  # fmt: skip

TASK_EVENT: Schema = {
    "type": "object",
    "required": ["event", "id", "data"],
    "properties": {
        "event": {"type": "string", "enum": ["status", "progress", "preview", "result"]},
        "id": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": ref("Result")},
    },
}
TASKS: Schema = {
    "type": "object",
    "required": ["tasks", "next_cursor"],
    "properties": {
        "tasks": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id", "model", "status", "created_at", "cost", "progress", "polling_url"],
                "properties": {
                    "id": _ID,
                    "model": {"type": "string"},
                    "status": {"type": "string", "enum": list(WORDS)},
                    "created_at": {"type": "number", "description": "Seconds since the epoch."},
                    "cost": {"type": "number", "description": "Credits: as reserved, and as charged at the end."},
                    "progress": _NUMBER_OR_NULL,
                    "polling_url": {"type": "string", "format": "uri"},
                },
            },
        },
        "next_cursor": {"type": ["string", "null"], "description": "Null on the last page."},
    },
}
DELIVERY: Schema = {
    "type": "object",
    "required": [
        "task_id", "webhook_id", "webhook_url", "status", "attempts", "created_at", "next_attempt_at",
        "last_attempt_at", "last_status", "last_problem", "ended_at",
    ],
    "properties": {
        "task_id": _ID,
        "webhook_id": {"type": "string", "description": "The same at every attempt, as the header webhook-id."},
        "webhook_url": {"type": "string"},
        "status": {"type": "string", "enum": list(DeliveryState)},
        "attempts": {"type": "integer", "minimum": 0, "description": "Since the last replay."},
        "created_at": {"type": "number", "description": "Seconds since the epoch, as are all times here."},
        "next_attempt_at": _NUMBER_OR_NULL,
        "last_attempt_at": _NUMBER_OR_NULL,
        "last_status": {"type": ["integer", "null"], "description": "HTTP status of the last attempt."},
        "last_problem": {"type": ["string", "null"], "description": "Why the last attempt had none, as a word."},
        "ended_at": _NUMBER_OR_NULL,
    },
}  # fmt: skip
DELIVERIES: Schema = {
    "type": "object",
    "required": ["deliveries", "next_cursor"],
    "properties": {
        "deliveries": {"type": "array", "items": ref("Delivery")},
        "next_cursor": {"type": ["string", "null"], "description": "Null on the last page."},
    },
}
