"""Whose call it is that gradio makes right now."""

from gradio.context import LocalContext


def visitor() -> str:
    """The session of the caller; empty outside of a call, and where gradio's own client calls for somebody else.

    All tools of MCP are called by one client inside the server: its session is nobody's in particular.
    """
    request = LocalContext.request.get(None)
    if request is None or request.headers.get("x-gradio-user") == "mcp":
        return ""
    return request.session_hash or ""
