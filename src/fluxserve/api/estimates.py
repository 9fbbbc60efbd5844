"""`POST {prefix}/estimate`, plain ASGI: what a request would cost; nothing is drawn, reserved or kept.

The body is that of a submit, with the model's name in `model`. What a submit refuses for its fields is refused alike.
"""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from fluxserve import catalogue
from fluxserve.accounts.credits import to_credits
from fluxserve.api import auth, schemas
from fluxserve.api.body import Bodies
from fluxserve.api.dialect import Body, Dialect
from fluxserve.api.responses import send_error, send_json
from fluxserve.errors import FieldRefused, FluxserveError, MethodNotAllowed
from fluxserve.service.orders import Estimate, Order
from fluxserve.service.service import Service

#: The field that names the model.
MODEL = "model"


class Estimates:
    """Answers what requests would cost, in every dialect."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._bodies = Bodies(service.settings.max_body, service.settings.max_bodies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send, dialect: Dialect) -> None:
        """One estimate."""
        try:
            key = auth.authenticate(scope, self._service)
            if scope["method"] != "POST":
                raise MethodNotAllowed("That method is not allowed here. Allowed: POST.")
            origin = auth.origin(scope, self._service.settings)
            with self._bodies.open() as body:
                fields = schemas.parse_object(await body.read(scope, receive))
                name = fields.pop(MODEL, None)
                if not isinstance(name, str):
                    raise schemas.invalid(("body", MODEL), "missing", "Field required: the name of a model", name)
                spec = catalogue.find(name)
                checked = schemas.check_fields(spec, fields)
                order = Order(
                    key=key, spec=spec, values=checked.values, pictures=checked.pictures, urls=checked.urls,
                    ignored=checked.ignored, dialect=dialect.name, origin=origin, idempotency_key=None,
                )  # fmt: skip
                try:
                    estimate = await self._service.estimate(order)
                except FieldRefused as error:
                    raise schemas.invalid(("body", error.field), error.kind, error.message, error.value) from None
        except FluxserveError as error:
            headers = [(b"allow", b"POST")] if isinstance(error, MethodNotAllowed) else []
            await send_error(send, error, dialect, headers)
            return
        await send_json(send, 200, _render(estimate))


def _render(estimate: Estimate) -> Body:
    return {
        "cost": to_credits(estimate.cost),
        "input_mp": round(estimate.input_area / 1e6, 2),
        "output_mp": estimate.size.megapixels,
        "at_most": estimate.at_most,
    }
