"""Errors of the library: each names the bad value, the valid ones and the fix."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SO101Error(Exception):
    """Base class of every error that mjx_so101, policies, train and bench raise on purpose."""


class ConfigError(SO101Error, ValueError):
    """A value given by the user is not valid."""


class HealthError(SO101Error, RuntimeError):
    """The simulation itself went wrong: overflow, NaN or a non-finite action."""


class CheckpointError(SO101Error, RuntimeError):
    """A checkpoint is missing, damaged or belongs to another configuration."""


class RemoteError(SO101Error, RuntimeError):
    """A policy server does not answer, or what it answers cannot be used."""


class Interrupted(Exception):
    """Somebody asked to stop between two control steps; what was begun is dropped. Not an error."""


def require_choice(name: str, value: str, valid: Iterable[str]) -> str:
    """Return `value` if it is one of `valid`, else raise a ConfigError that lists them."""
    valid = list(valid)
    if value in valid:
        return value
    near = get_close_matches(str(value), valid, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(map(repr, valid))}.{hint}")
