"""Every error that a user can meet. Messages are meant for them and say what is wrong and what to do. No torch here."""

from typing import Any


class InputError(ValueError):
    """What the user typed cannot be used; the message says why and is shown beside the box."""


class TooLongError(InputError):
    """A text that the model's context cannot hold.

    Attributes:
        beginning: the longest run of whole sentences from the start that it can hold.
    """

    def __init__(self, message: str, beginning: str) -> None:
        super().__init__(message)
        self.beginning = beginning


class SettingError(InputError):
    """A setting is bad, whatever the input is.

    Attributes:
        name: of the setting, where it is a single one; `named` calls it what the caller called it.
    """

    def __init__(self, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name

    def named(self, name: str) -> str:
        """The message with another name for the setting at its beginning."""
        message = str(self)
        return name + message.removeprefix(self.name) if self.name and message.startswith(self.name) else message


class PromptError(ValueError):
    """A prompt that this model cannot take; the message says why."""


class ModelError(ValueError):
    """A model or adapter that cannot be used; the message says why, and names it."""


class ModelUnavailable(ModelError):
    """A model whose files, or a package that reads them, are not here; the message says how to have them."""


class ServerError(ModelError):
    """A server that decodes for this process cannot be used, or failed in the middle; the message says what to do."""


class ImplUnavailable(RuntimeError):
    """The implementation that was asked for cannot run here; the message says why."""


class EngineLost(RuntimeError):
    """The device failed in the middle: nothing can run on this engine any more."""


class LaneError(RuntimeError):
    """A lane failed; `lane_id` names it and `__cause__` is what it raised."""

    def __init__(self, lane_id: str, cause: Exception) -> None:
        super().__init__(f"the {lane_id} lane failed: {cause or type(cause).__name__}")
        self.lane_id = lane_id


class NotReady(RuntimeError):
    """The models cannot be used, most likely because they are not there."""


class Busy(NotReady):
    """Others have the device for too long, or a visitor asks for too much of it at once."""


class OutOfTime(NotReady):
    """A run has had the device for as long as one may."""

    def __init__(self, most_s: float) -> None:
        super().__init__(
            f"The run was ended after {most_s:g} s of the device, the most that one may have here. "
            "A shorter input, or fewer new tokens, ends in time."
        )


def brief(value: Any) -> str:
    """What a caller passed, short enough for a message."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 100:
        return "a far larger number"  # Python refuses to write very long ones out
    return repr(value)[:40]
