"""Checkpoints: the whole state of a run in one versioned folder, written atomically with Orbax."""

from __future__ import annotations

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

FORMAT = 1
_META = "meta.json"


def save(path: Path, trees: dict[str, Any], meta: dict[str, Any]) -> None:
    """Write pytrees and a JSON record to folder `path`; it appears whole or not at all.

    Raises CheckpointError if it cannot be written (a full disk, say); a folder already at `path` then survives.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        with ocp.StandardCheckpointer() as checkpointer:
            for name, tree in trees.items():
                checkpointer.save((temporary / name).absolute(), jax.tree.map(np.asarray, tree))
        record = {"format": FORMAT, "version": mjx_so101.__version__, **meta}
        (temporary / _META).write_text(json.dumps(record, indent=2))
        _replace(temporary, path)
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
    """Put the former checkpoint back if a crash left nothing in its place."""
    if not path.exists() and _old(path).is_dir():
        os.rename(_old(path), path)


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON record of a checkpoint. Raises CheckpointError if missing, damaged or of another format."""
    recover(Path(path))
    file = Path(path) / _META
    try:
        meta = json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}: {_META} is missing.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {_META} cannot be read ({error}).") from None
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {meta.get('format')}; this version reads {FORMAT}.")
    return meta


def restore(path: Path, name: str, like: Any) -> Any:
    """Read pytree `name` of a checkpoint into the structure, shapes and dtypes of `like`.

    Raises CheckpointError naming the leaves that differ, or saying that the files are damaged.
    """
    folder = (Path(path) / name).absolute()
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {path} holds no {name!r}; it is incomplete.")
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
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys): (
            tuple(leaf.shape),
            str(np.dtype(leaf.dtype)),
        )
        for keys, leaf in flat
    }


def check_same(path: Path, saved: dict[str, Any], wanted: dict[str, Any], what: str) -> None:
    """Raise CheckpointError naming each entry that differs between two (nested) records."""
    saved_flat, wanted_flat = _flatten(saved), _flatten(wanted)
    differ = sorted(k for k in saved_flat.keys() | wanted_flat.keys() if saved_flat.get(k) != wanted_flat.get(k))
    if differ:
        shown = "; ".join(f"{k}: saved {saved_flat.get(k)!r}, now {wanted_flat.get(k)!r}" for k in differ)
        raise CheckpointError(f"checkpoint {path} belongs to another {what}: {shown}.")


def _flatten(record: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(record, dict):
        return {prefix: record}
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat.update(_flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat
