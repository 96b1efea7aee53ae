"""Every error that Steelworks raises on its own account.

Each message names what was given, what is allowed and what to do. Errors that a
model raises are never wrapped: a request fails with the model's own exception.
"""

from __future__ import annotations


class SteelworksError(Exception):
    """Base class of all errors raised by Steelworks itself."""


class InvalidInputError(SteelworksError, ValueError):
    """The input of a call does not fit what the model or plan was made for."""


class ModelOutputError(SteelworksError):
    """The model's output can't be cut into one result a request."""


class QueueClosedError(SteelworksError, RuntimeError):
    """The queue is closed, or was closed before the request ran."""


class QueueFullError(SteelworksError, RuntimeError):
    """``max_pending`` requests are waiting and the policy is to refuse or to drop."""


class DeadlineExceededError(SteelworksError, TimeoutError):
    """The request's deadline passed before its result was there."""


class WorkerDiedError(SteelworksError, RuntimeError):
    """The worker that ran the request ended, and the one retry ended it too."""


class WorkerHungError(SteelworksError, TimeoutError):
    """A batch ran longer than ``batch_timeout``; its worker was given up."""


class StreamPoolExhaustedError(SteelworksError, RuntimeError):
    """No stream came free in time, or the policy is to raise at once."""


class ForkedProcessError(SteelworksError, RuntimeError):
    """An object with threads or device state was used in a forked child."""


class StreamPoolClosedError(SteelworksError, RuntimeError):
    """The pool is closed, or was closed while the thread waited for a stream."""


class DeviceRuleError(SteelworksError, RuntimeError):
    """A call would break a rule of the device (for example use off the owning thread)."""
