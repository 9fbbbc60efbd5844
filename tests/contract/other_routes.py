"""The routes of other APIs than the Flux API, as method and path of the served document."""

from __future__ import annotations

#: Answered when something is drawn.
HELD = {"POST /v1/images/generations", "POST /v1/images/edits"}
OF_ONE_PREDICTION = {"GET /v1/predictions/{id}", "POST /v1/predictions/{id}/cancel"}
OF_THE_CALLER = {"GET /v1/predictions"}
BEGINNING = {"POST /v1/predictions", "POST /v1/models/{owner}/{name}/predictions"}
OTHER_ROUTES = HELD | OF_ONE_PREDICTION | OF_THE_CALLER | BEGINNING
