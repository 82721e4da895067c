"""`OPTIONS`: which methods a path has."""

from typing import cast

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.response.base import ASGIResponse
from litestar.routes import HTTPRoute
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send


class Options(ASGIMiddleware):
    """Answers for every path, from the routes: Litestar's own answers know but one of a path's handlers.

    It needs no token: `/schema` says the same to anybody.
    """

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """See `ASGIMiddleware`."""
        if cast(HTTPScope, scope)["method"] != "OPTIONS":
            await next_app(scope, receive, send)
            return
        routes = (route for route in scope["litestar_app"].routes if isinstance(route, HTTPRoute))
        methods = {
            str(method) for route in routes if route.path_format == scope["path_template"] for method in route.methods
        }
        answer = ASGIResponse(status_code=204, headers={"Allow": ", ".join(sorted(methods))})
        await answer(scope, receive, send)
