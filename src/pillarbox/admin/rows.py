"""What a route of the API is, and OpenAPI made from a table of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from ..errors import DuplicateUidError, OptionError, PillarboxError, StateError
from .refusals import refused

Handle = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Row:
    """A route. `query`: parameters with their meaning. `answer`: what 200 gives."""

    method: str
    path: str
    name: str
    summary: str
    answer: str
    query: dict[str, str]


def openapi(rows: Sequence[Row]) -> dict[str, Any]:
    """The API's description (OpenAPI 3.1)."""
    paths: dict[str, Any] = {}
    for row in rows:
        in_path = [part[1:-1] for part in row.path.split("/") if part.startswith("{")]
        parameters = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in in_path]
        parameters += [
            {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
            for name, text in row.query.items()
        ]
        paths.setdefault(row.path, {})[row.method.lower()] = {
            "operationId": row.name,
            "summary": row.summary,
            "parameters": parameters,
            "responses": {
                "200": {"description": row.answer},
                "default": {"description": "{error: what is wrong and what to do}"},
            },
            **({"security": []} if row.path == "/healthz" else {}),
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Pillarbox", "version": __version__},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
        "paths": paths,
    }


def answering_errors(handle: Handle) -> Handle:
    """Every error of ours as an answer that says what to do: JSON, or a page for a browser."""

    async def answered(request: Request) -> Response:
        try:
            return await handle(request)
        except (ValueError, OptionError, RecursionError) as error:
            return refused(request.scope, 400, str(error))
        except DuplicateUidError as error:
            return refused(request.scope, 409, str(error))
        except (StateError, PillarboxError) as error:
            return refused(request.scope, 503, str(error))

    return answered
