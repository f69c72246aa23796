"""What the body of a request may be, looked at before gradio reads it: cheap, and in time by its length. No torch here.

Gradio parses a body three times while all other requests wait, keeps it until its call begins, and quotes all of what
it refuses. Eight megabytes of one text are parsed in milliseconds; of `[],[],[]` they took seconds and 190 MB a call.
"""

import json
import re
from itertools import islice
from typing import Any

MOST_PARTS = 2000
"""Strings of a request, and characters that a value or a key follows. A page's have about a hundred."""
MOST_LEVELS = 50
"""Lists and objects within each other."""
MOST_QUOTED_BYTES = 10_000
"""Of a request's parts that are no values for an endpoint: gradio sends them back with what it says against them."""
MOST_TOOL_BYTES = 2 * 10**6
"""Of a request of an MCP client, which is held until its tool's run is over."""
MOST_NAME = 64
NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MOST_NAME}}}")
"""What a caller may call a session; gradio's own pages and clients use ten characters, or the 36 of a UUID."""
BY_NAME = "/gradio_api/call/v2/"
CANCEL = "/gradio_api/cancel"
TOOLS = "/gradio_api/mcp"
_VALUED = tuple(f"/gradio_api/{one}" for one in ("call/", "queue/join", "run/", "api/"))
"""Beginnings of paths whose requests have values for an endpoint, in a list called data."""
_JSON = re.compile(r"application/([^;\s]*\+)?json\s*(;|$)", re.IGNORECASE)
BODY_BYTES = "selfspan.body_bytes"
"""Of a request's scope: how long its body was."""
_PART = re.compile(rb'"[^"]*"?|[\[{,:]')
"""Of a body whose strings have no escaped quotation marks."""


TOO_DEEP = f"Lists and objects may lie in each other {MOST_LEVELS} times at most."


class WrongBody(Exception):
    """What is wrong with a request, in words for who sent it."""


def read(path: str, body: bytes, kind: str) -> Any:
    """What a body says; None where it is short and no JSON, which gradio refuses.

    Args:
        path: asked for, below the root.
        body: all of it.
        kind: its content type.

    Raises:
        WrongBody: it has too many parts, or what cannot be sent back.
    """
    if not body:
        return None
    if len(body) > MOST_QUOTED_BYTES and not _JSON.match(kind):
        raise WrongBody("The request has to be of the content type application/json.")
    text = _text(body)
    _require_few_parts(body)
    try:
        said = json.loads(text)
    except RecursionError:
        raise WrongBody(TOO_DEEP) from None
    except ValueError:
        if len(body) > MOST_QUOTED_BYTES:
            raise WrongBody("The request is no JSON.") from None
        return None
    _require_names(said)
    _require_flat(said)
    if path.startswith(TOOLS):
        if len(body) > MOST_TOOL_BYTES:
            raise WrongBody(f"The request of a tool is larger than {MOST_TOOL_BYTES / 10**6:g} MB.")
    elif path.startswith(BY_NAME) and path != BY_NAME and isinstance(said, dict):
        _require_quotable(list(said))
    else:
        _require_quotable(_without_values(path, said))
    return said


def _text(body: bytes) -> str:
    """The body's characters. Other encodings, which gradio would try, hide what is a string and what is none."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise WrongBody("A request has to be UTF-8.") from None
    if "\0" in text or text.startswith("\ufeff"):
        raise WrongBody("A request has to be UTF-8, without a mark of the byte order.")
    return text


def _require_few_parts(body: bytes) -> None:
    bare = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if next(islice(_PART.finditer(bare), MOST_PARTS, None), None) is not None:
        raise WrongBody(f"A request may have {MOST_PARTS // 2:,} values and keys at most.")


def _require_flat(said: Any) -> None:
    """Neither more levels than gradio's encoders get over, nor keys that nobody can send: gradio names them."""
    left = [(said, 0)]
    while left:
        value, level = left.pop()
        if not isinstance(value, dict | list):
            continue
        if level == MOST_LEVELS:
            raise WrongBody(TOO_DEEP)
        if isinstance(value, dict):
            if any(_is_broken(key) for key in value):
                raise WrongBody("A name in the request has half of a pair of surrogates.")
            value = list(value.values())
        left += [(one, level + 1) for one in value]


def _is_broken(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _without_values(path: str, said: Any) -> Any:
    """A request without the values that are for an endpoint, which the endpoint refuses in words of its own."""
    if isinstance(said, dict) and isinstance(said.get("data"), list) and path.startswith(_VALUED):
        return {name: value for name, value in said.items() if name != "data"}
    return said


def _require_quotable(said: Any) -> None:
    try:
        quoted = json.dumps(said, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise WrongBody("The request has half of a pair of surrogates.") from None
    except ValueError:
        raise WrongBody("Numbers have to be finite.") from None
    if len(quoted) > MOST_QUOTED_BYTES:
        raise WrongBody(f"Beside the list of values, data, a request may have {MOST_QUOTED_BYTES:,} bytes at most.")


def _require_names(said: Any) -> None:
    """A session without a name, or with any name of megabytes, has a queue that gradio does not find, or keeps."""
    if not isinstance(said, dict):
        return
    for name in ("session_hash", "event_id"):
        value = said.get(name)
        if value is not None and not (isinstance(value, str) and NAME.fullmatch(value)):
            raise WrongBody(f"{name} has to be 1 to {MOST_NAME} letters, digits, - or _.")
