"""Cameras by name: which view each picture of a policy must show. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mjx_so101.errors import ConfigError

ROLE_WORDS = {"wrist": ("wrist", "hand", "gripper"), "top": ("top", "overhead", "up")}
KNOWN_ROLES = {"image_cam_0": "top", "image_cam_1": "wrist"}
"""What the cameras of phospho-app/gr00t-paper_return-7w9itxzsox show."""


def camera_role(name: str) -> str | None:
    """`top` or `wrist` where the name of a camera tells, else None."""
    words = name.lower().replace("-", "_").replace(".", "_").split("_")
    found = [role for role, marks in ROLE_WORDS.items() if any(mark in words for mark in marks)]
    return KNOWN_ROLES.get(name, found[0] if len(found) == 1 else None)


def match_cameras(keys: Sequence[str], given: Sequence[str] | Mapping[str, str] | None) -> tuple[str, ...]:
    """Views that the images must show, in the checkpoint's order.

    `given` names the views in the order in which the caller stacks them, or maps each of the checkpoint's keys to a
    view. None stands for what the keys themselves tell.

    Raises:
        ConfigError: for another number of cameras, the same view twice, or views in another order than the keys'.
    """
    keys = tuple(keys)
    if isinstance(given, str):
        raise ConfigError(f"cameras is {given!r}; give a list of names, or a mapping from {', '.join(keys)} to names.")
    if isinstance(given, Mapping):
        if set(given) != set(keys):
            example = " ".join(f"{key}={view}" for key, view in zip(keys, _told_by_keys(keys), strict=True))
            raise ConfigError(
                f"The camera map has {', '.join(given)}; the checkpoint's cameras are {', '.join(keys)}. Map each of "
                f"them to a camera of the scene, as in --camera-map {example}."
            )
        views = tuple(given[key] for key in keys)
    else:
        views = tuple(given) if given is not None else _told_by_keys(keys)
        if len(views) != len(keys):
            raise ConfigError(
                f"{len(views)} cameras are given ({', '.join(views) or 'none'}); the checkpoint was trained on "
                f"{len(keys)}: {', '.join(_described(key) for key in keys)}."
            )
        _require_order(keys, views)
    if len(set(views)) != len(views):
        raise ConfigError(f"cameras is {views!r}: the same view stands in two places.")
    return views


def _told_by_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    """The role of each camera where it has one that no other shares, else the key itself."""
    roles = [camera_role(key) for key in keys]
    return tuple(role if role and roles.count(role) == 1 else key for key, role in zip(keys, roles, strict=True))


def _described(key: str) -> str:
    role = camera_role(key)
    return key if role in (None, key) else f"{key} ({role} view)"


def _require_order(keys: tuple[str, ...], views: tuple[str, ...]) -> None:
    for place, (key, view) in enumerate(zip(keys, views, strict=True)):
        if view == key:
            continue
        roles = camera_role(key), camera_role(view)
        if view in keys or (None not in roles and roles[0] != roles[1]):
            raise ConfigError(
                f"cameras is {views!r}, but camera {place} of the checkpoint is {_described(key)}, not {view!r}. The "
                f"checkpoint's order is {', '.join(_described(k) for k in keys)}."
            )
        if None in roles:
            raise ConfigError(
                f"Whether {view!r} shows what {key!r} of the checkpoint showed in training cannot be told from the "
                f"names. Say so with cameras={{{key!r}: {view!r}, ...}}."
            )
