"""Whether the hub can be asked for a model, before libraries try for a minute and more."""

from pathlib import Path

from selfspan_core.errors import ModelUnavailable

REACH_S = 5.0
"""Seconds to wait for the hub's first word."""


def cached_folder(hub_id: str, file: str = "config.json", revision: str | None = None) -> Path | None:
    """The folder of a model's files that were fetched before; None if `file` is not among them."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, file, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def why_unreachable() -> str:
    """Why the hub cannot be asked, in a few words; empty if it answers, whatever that is."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "this process is told to stay offline"
    try:
        get_session().head(constants.ENDPOINT, timeout=REACH_S)
    except Exception as error:  # of whichever library the hub's client asks with
        return f"{constants.ENDPOINT} does not answer ({type(error).__name__})"
    return ""


def place_on_hub(hub_id: str) -> str | Path:
    """The argument with which transformers loads a hub's model: its id, or its folder where only that can be had.

    Raises:
        ModelUnavailable: it was never fetched, and the hub cannot be asked.
    """
    why = why_unreachable()
    if not why:
        return hub_id
    folder = cached_folder(hub_id)
    if folder is None:
        raise ModelUnavailable(
            f"there is no folder {hub_id!r} here, and the hub cannot be asked for a model of that name: {why}. Check "
            "the network, or name a folder or a GGUF file"
        )
    return folder
