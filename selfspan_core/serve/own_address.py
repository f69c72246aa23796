"""The description of the API, with the address by which its reader came. No torch here."""

from urllib.parse import parse_qsl, urlencode

from starlette.types import ASGIApp, Receive, Scope, Send

DESCRIPTION = "/gradio_api/info"


class OwnAddress:
    """ASGI middleware that has the API described for each who asks.

    Gradio keeps the first description, with examples of calls to the address that its reader named: whoever asks first
    after a start, by whatever name of a host, decides what everybody is shown. Of a page's description, and this app
    has one page without a name, it keeps what no address is in.

    Args:
        app: gradio's.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; whichever page it asks for, it is the one that there is."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", "").rstrip("/")).rstrip("/")
        if scope["type"] == "http" and path == DESCRIPTION:
            asked = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
            others = [pair for pair in asked if pair[0] != "page"]
            scope = {**scope, "query_string": urlencode([*others, ("page", "")]).encode()}
        await self._app(scope, receive, send)
