"""What the server says about itself: health, readiness, models, docs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field

from fluxserve import __version__, catalogue
from fluxserve.accounts.credits import to_credits
from fluxserve.catalogue import ModelSpec
from fluxserve.catalogue.schema import request_schema
from fluxserve.engine.checkpoints import Checkpoint
from fluxserve.errors import NotFound

#: Of a model that other workers than those that are connected would draw.
NOT_NOW = "Not served now: /readyz says what could not be loaded"
#: The media type of certificates in PEM.
PEM = "application/x-pem-file"


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"
    version: str = __version__


class Readiness(BaseModel):
    """Whether a picture asked for now would be drawn."""

    ready: bool = Field(description="A worker has its weights loaded and warm.")
    reason: str = Field(description="Why not, and what to do; empty when ready.")
    starting: bool = Field(False, description="The first workers beside the server are getting ready; none has failed.")
    workers: int = Field(description="Workers that are connected and warm.")
    left_out: list[str] = Field(
        default=[], description="Weights that could not be loaded, and what to do; what they draw waits."
    )
    unfinished_tasks: int = Field(description="Tasks that wait or run.")
    upsampling: str = Field("", description="Why the last prompt was not enriched that was to be; empty: it was.")
    moderation: Literal["on", "off"] = Field(description="Whether prompts and pictures are refused by category.")


class Model(BaseModel):
    """One model, in the shape that lists of models have everywhere, and what it is here."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(default=0, description="Not known; there for clients that ask for it.")
    owned_by: str = "fluxserve"
    title: str
    description: str
    path: str = Field(description="POST here.")
    parameters: dict[str, Any] = Field(description="JSON Schema of the request body.")
    price: float = Field(description="Credits a picture, or its first megapixel.")
    price_further: float = Field(description="Credits each further megapixel, out or in; 0: none is counted.")
    price_is_published: bool = Field(description="False where the hosted API names no price and ours stands in.")
    runs_on: str = Field(description="What draws this model here.")
    served: bool | None = Field(
        description="A worker that is connected draws it; false: its tasks wait. null: no worker is connected."
    )
    license: str = Field(description="Licence of the weights that draw it here.")


class NotDrawn(BaseModel):
    """A published model that is refused here."""

    id: str
    reason: str


class ModelList(BaseModel):
    """Every model that is drawn, and those published ones that are not, with the reason."""

    object: Literal["list"] = "list"
    data: list[Model]
    moderation: Literal["on", "off"] = Field(description="Whether prompts and pictures are refused by category.")
    not_drawn: list[NotDrawn] = [NotDrawn(id=name, reason=reason) for name, reason in catalogue.NOT_DRAWN.items()]


def describe_model(spec: ModelSpec, checkpoint: Checkpoint, missing: str, served: bool | None) -> Model:
    """A model as the list shows it; `missing` is what has to be installed before anything here draws."""
    otherwise = [line.removesuffix(".") for line in checkpoint.does_otherwise(spec)]
    return Model(
        id=spec.name,
        title=spec.title,
        description=spec.help,
        path=f"/v1/{spec.name}",
        parameters=dict(request_schema(spec)),
        price=to_credits(spec.price.millicredits),
        price_further=to_credits(spec.price.further),
        price_is_published=spec.price.published,
        runs_on=". ".join(filter(None, (NOT_NOW * (served is False), checkpoint.describe(), *otherwise, missing))),
        served=served,
        license=checkpoint.license or "not stated",
    )


def router(
    checkpoints: Mapping[str, Checkpoint],
    missing: str,
    certificates: Callable[[], bytes],
    readiness: Callable[[], Readiness],
    is_served: Callable[[str], bool | None],
) -> APIRouter:
    """The routes; all but the model list need no key."""
    routes = APIRouter()

    @routes.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    @routes.get("/healthz", summary="Is the process alive?", tags=["About"])
    async def healthz() -> Health:
        return Health()

    @routes.get(
        "/readyz",
        summary="Would a picture be drawn now?",
        tags=["About"],
        responses={503: {"model": Readiness, "description": "Not yet, and why."}},
    )
    async def readyz(response: Response) -> Readiness:
        state = readiness()
        response.status_code = 200 if state.ready else 503
        response.headers["cache-control"] = "no-store"
        return state

    @routes.get("/v1/models", summary="Every model: parameters, price, what it runs on here", tags=["About"])
    async def models() -> ModelList:
        return ModelList(
            data=[
                describe_model(spec, checkpoints[name], missing, is_served(name))
                for name, spec in catalogue.MODELS.items()
            ],
            moderation=readiness().moderation,
        )

    @routes.get(
        "/c2pa/certificates.pem",
        summary="What verifies the pictures' C2PA signatures",
        tags=["About"],
        response_class=Response,
        responses={
            200: {"content": {PEM: {}}, "description": "The certificates of the authority that signs, newest first."},
            404: {"description": "Pictures are not signed here, or by an authority that is not known here."},
        },
    )
    async def signers() -> Response:
        found = certificates()
        if not found:
            raise NotFound("Pictures are not signed here, or by an authority whose certificate is not known here.")
        return Response(found, media_type=PEM)

    return routes
