"""The errors of the SDK: all of the broker's, and those that arise before or without it."""

from __future__ import annotations

from penstock_protocol import errors as _errors
from penstock_protocol.errors import *  # noqa: F403 - the broker's errors are the SDK's
from penstock_protocol.errors import Fault, PenstockError


class NotConnected(PenstockError):
    """The broker could not be reached within the request's time; nothing was sent."""

    code = 900
    fault = Fault.BROKER
    retryable = True
    advice = "Is the broker running, and the address right? The client keeps trying in the background."


class ConnectionLost(PenstockError):
    """The connection broke after the request was sent, and it is not safe to send it again: its outcome is unknown."""

    code = 901
    fault = Fault.BROKER
    retryable = False
    advice = "Look whether it took effect before you ask again."


class RequestTimeout(PenstockError):
    """No answer came within the request's time. For sends on the same client a retry is safe."""

    code = 902
    fault = Fault.BROKER
    retryable = True
    advice = "The broker is slow or unreachable; raise request_timeout or look at its metrics."


class ClientClosed(PenstockError):
    """The client was closed."""

    code = 903
    fault = Fault.CALLER
    advice = "Use the client inside its `with` block."


class SendFailed(PenstockError):
    """Some messages of a batch were refused: `failures` maps their places in the batch to errors, `sent` has the others."""

    code = 904
    fault = Fault.CALLER
    advice = "Look at .failures: each entry answers for itself."

    def __init__(
        self, message: str = "", failures: dict[int, PenstockError] | None = None, sent: list[object] | None = None
    ) -> None:
        super().__init__(message)
        self.failures = failures or {}
        self.sent = sent or []


__all__ = [
    *(name for name, value in vars(_errors).items() if isinstance(value, type) and issubclass(value, PenstockError)),
    "ClientClosed",
    "ConnectionLost",
    "NotConnected",
    "RequestTimeout",
    "SendFailed",
]
