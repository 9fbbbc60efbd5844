"""`GET {prefix}/credits`: what an account has left."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from fluxserve.accounts.credits import to_credits
from fluxserve.api import auth
from fluxserve.api.dialect import Dialect
from fluxserve.service.service import Service

#: What an unlimited account is said to have: a number, for callers that compare it with a price.
UNLIMITED = 1e9


class Credits(BaseModel):
    """What is left; credits that unfinished tasks have reserved are not in it."""

    credits: float = Field(description="What is left, less what unfinished tasks have reserved.")
    unlimited: bool = Field(default=False, description="There, and true, where nothing is ever taken off.")


def router(service: Service, dialects: tuple[Dialect, ...]) -> APIRouter:
    """One route for each dialect, and all answer the same."""
    routes = APIRouter()

    async def credits_left(request: Request) -> Credits:
        key = auth.authenticate(request.scope, service)
        left = await service.credits(key.account_id)
        return Credits(credits=UNLIMITED, unlimited=True) if left is None else Credits(credits=to_credits(left))

    for dialect in dialects:
        routes.add_api_route(
            f"{dialect.prefix}/credits",
            credits_left,
            methods=["GET"],
            summary="What is left of the account's credits",
            operation_id=f"{dialect.name}_credits",
            tags=[dialect.title],
            response_model_exclude_defaults=True,
        )
    return routes
