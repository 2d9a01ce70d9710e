"""The class of all routes. FastAPI documents them, but they call their endpoints without resolving dependencies.

FastAPI's own handler and query parser would cost the event loop 0.25 ms more per request, which is 1 % of the total CPU
time for a small image. FastAPI documents `get_route_handler` as the place to replace them. Errors still reach the
application's handlers.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import lru_cache
from typing import Any, TypeVar, get_type_hints

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.datastructures import QueryParams

LONGEST_CACHED_QUERY = 256  # bytes; bounds the memory of the cache
CACHED_QUERIES = 512

Query = TypeVar("Query", bound=BaseModel)


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
                arguments["query"] = parse_query(kind, request.scope["query_string"])
            response: Response = await endpoint(**arguments)
            return response

        return handler


def parse_query(kind: type[Query], query: bytes) -> Query:
    """Parses a query as FastAPI would. Raises RequestValidationError that lists every bad or unknown parameter."""
    return _parse_cached(kind, query) if len(query) <= LONGEST_CACHED_QUERY else _parse(kind, query)


def _parse(kind: type[Query], query: bytes) -> Query:
    parameters = QueryParams(query)
    repeatable = [name for name, field in kind.model_fields.items() if field.annotation == list[str]]
    values = {name: parameters.getlist(name) if name in repeatable else parameters[name] for name in parameters}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
    raise RequestValidationError([{**fault, "loc": ("query", *fault["loc"])} for fault in faults])


_parse_cached = lru_cache(CACHED_QUERIES)(_parse)  # most clients repeat the same query
