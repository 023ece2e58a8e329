"""Checkpoints: the whole state of a run in one versioned folder, written atomically with Orbax.

Its record holds a SHA-256 of each pytree and of itself, so that nothing is read that was not written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

import mjx_so101
from mjx_so101.errors import CheckpointError
from train.files import sync, sync_tree

FORMAT = 2
_META = "meta.json"
MAY_BE_NAN = ("carry/base/targets",)
"""Leaves that may hold NaN or inf: what a model answered. The environment executes no such target."""


def save(path: Path, trees: dict[str, Any], meta: dict[str, Any]) -> None:
    """Write pytrees and a JSON record to folder `path`; it appears whole or not at all.

    Raises CheckpointError if it cannot be written (a full disk, say) or if a leaf is not finite; a folder already at
    `path` then survives.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.writing")
    trees = {name: jax.tree.map(np.asarray, tree) for name, tree in trees.items()}
    for name, tree in trees.items():
        bad = not_finite(tree)
        if bad:
            raise CheckpointError(f"checkpoint {path} is not written: {name} is not finite ({', '.join(bad[:5])}).")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        with ocp.StandardCheckpointer() as checkpointer:
            for name, tree in trees.items():
                checkpointer.save((temporary / name).absolute(), tree)
        checksums = {name: checksum(tree) for name, tree in trees.items()}
        record = {"format": FORMAT, "version": mjx_so101.__version__, **meta, "checksums": checksums}
        write_meta(temporary, record)
        sync_tree(temporary)
        _replace(temporary, path)
        sync(path.parent)
    except (OSError, ValueError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint {path} could not be written ({error}); earlier checkpoints are untouched. "
            "Free some disk space or choose another --out folder."
        ) from error


def _replace(temporary: Path, path: Path) -> None:
    """Swap the new folder in; whatever interrupts this, `recover` finds a whole checkpoint."""
    old = _old(path)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(path, old)
    try:
        os.rename(temporary, path)
    except OSError:
        recover(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def recover(path: Path) -> None:
    """Put the former checkpoint back if a crash left nothing in its place. Only its run may do so."""
    if not path.exists() and _old(path).is_dir():
        os.rename(_old(path), path)


def _whole(path: Path) -> Path:
    """Where checkpoint `path` lies: at its place, or, if a crash left nothing there, where the former one was put."""
    path = Path(path)
    return _old(path) if not path.exists() and _old(path).is_dir() else path


def write_meta(path: Path, record: dict[str, Any]) -> None:
    """Write the record of the checkpoint in folder `path`, with its own checksum."""
    record = json.loads(json.dumps({**record, "checksum": None}))
    (path / _META).write_text(json.dumps({**record, "checksum": _digest(record)}, indent=2))


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON record of a checkpoint. Raises CheckpointError if missing, damaged, changed or of another format."""
    file = _whole(path) / _META
    try:
        meta = json.loads(file.read_text())
        if not isinstance(meta, dict):
            raise ValueError(f"it holds a {type(meta).__name__}, not an object")
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}: {_META} is missing.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {_META} cannot be read ({error}).") from None
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {meta.get('format')}; this version reads {FORMAT}.")
    if meta.get("checksum") != _digest({**meta, "checksum": None}):
        raise CheckpointError(f"checkpoint {path} is damaged: {_META} was changed after it was written.")
    return meta


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def checksum(tree: Any) -> str:
    """SHA-256 of a pytree: of the name, type, shape and bytes of every leaf."""
    digest = hashlib.sha256()
    for name, leaf in _leaves(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def not_finite(tree: Any) -> list[str]:
    """Names of the leaves that hold NaN or inf, except MAY_BE_NAN."""
    return [
        name
        for name, leaf in _leaves(tree)
        if name not in MAY_BE_NAN and jnp.issubdtype(leaf.dtype, jnp.inexact) and not jnp.isfinite(leaf).all()
    ]


def restore(path: Path, name: str, like: Any) -> Any:
    """Read pytree `name` of a checkpoint into the structure, shapes and dtypes of `like`.

    Raises CheckpointError naming the leaves that differ or are not finite, or saying that the files are damaged.
    """
    folder = (_whole(path) / name).absolute()
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {path} holds no {name!r}; it is incomplete.")
    wanted_sum = read_meta(path).get("checksums", {}).get(name)
    restored = _read(path, folder, name, like)
    if checksum(restored) != wanted_sum:
        raise CheckpointError(f"checkpoint {path} is damaged: {name!r} is not what was written (its checksum differs).")
    bad = not_finite(restored)
    if bad:
        raise CheckpointError(f"checkpoint {path} is damaged: {name!r} is not finite ({', '.join(bad[:5])}).")
    return restored


def _read(path: Path, folder: Path, name: str, like: Any) -> Any:
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            saved = _shapes(checkpointer.metadata(folder))
            wanted = _shapes(like)
        except Exception as error:
            raise CheckpointError(f"checkpoint {path} is damaged: {name!r} cannot be read ({error}).") from error
        differ = sorted(k for k in saved.keys() | wanted.keys() if saved.get(k) != wanted.get(k))
        if differ:
            shown = "; ".join(f"{k}: saved {saved.get(k)}, wanted {wanted.get(k)}" for k in differ[:5])
            raise CheckpointError(f"checkpoint {path} does not fit ({len(differ)} entries differ): {shown}.")
        try:
            target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), like)
            restored = checkpointer.restore(folder, target)
            # through NumPy, because leaves bound to a device would make every jitted function compile again
            return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), restored)
        except Exception as error:
            raise CheckpointError(f"checkpoint {path} is damaged: {name!r} cannot be read ({error}).") from error


def _shapes(tree: Any) -> dict[str, tuple]:
    tree = getattr(tree, "item_metadata", tree)
    tree = getattr(tree, "tree", tree)
    return {name: (tuple(leaf.shape), str(np.dtype(leaf.dtype))) for name, leaf in _leaves(tree)}


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    """Each leaf with its name, such as policy/params/hidden_0/kernel."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return [
        ("/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys), leaf)
        for keys, leaf in flat
    ]


def check_same(path: Path, saved: dict[str, Any], wanted: dict[str, Any], what: str) -> None:
    """Raise CheckpointError naming each entry that differs between two (nested) records."""
    differ = differing(saved, wanted)
    if differ:
        shown = "; ".join(f"{name}: saved {before!r}, now {now!r}" for name, before, now in differ)
        raise CheckpointError(f"checkpoint {path} belongs to another {what}: {shown}.")


def differing(saved: dict[str, Any], wanted: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, first, second) of each entry that differs between two (nested) records."""
    first, second = _flatten(saved), _flatten(wanted)
    names = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    return [(name, first.get(name), second.get(name)) for name in names]


def _flatten(record: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(record, dict):
        return {prefix: record}
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat.update(_flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat
