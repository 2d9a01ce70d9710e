"""The class of all routes. FastAPI documents them, but they call their endpoints without resolving dependencies.

FastAPI's own handler and query parser would cost the event loop 0.25 ms more per request, which is 1 % of the total CPU
time for a small image. FastAPI documents `get_route_handler` as the place to replace them. Errors still reach the
application's handlers.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute

from service.http import query


class DirectRoute(APIRoute):
    """A route whose endpoint takes any of `request`, `query` (a pydantic model) and the path's parameters, as text.

    Dependencies of the route, of `include_router` or of the application are not called. What concerns every request,
    such as authentication, belongs in a middleware.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Raises TypeError if the route or its router declares dependencies, which would be ignored."""
        if self.dependant.dependencies:
            raise TypeError(f"{self.path}: a DirectRoute cannot have dependencies; use a middleware or an APIRoute")
        endpoint = self.endpoint
        hints = get_type_hints(endpoint)
        takes_request, kind = "request" in hints, hints.get("query")

        async def handler(request: Request) -> Response:
            arguments: dict[str, Any] = request.path_params.copy()
            if takes_request:
                arguments["request"] = request
            if kind:
                arguments["query"] = query.parse(kind, request.scope["query_string"])
            response: Response = await endpoint(**arguments)
            return response

        return handler
