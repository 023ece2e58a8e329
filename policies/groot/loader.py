"""Opens a checkpoint folder safely: finds the files, checks every tensor's name and shape, reads what is needed.

Only safetensors and JSON are read; a file in Python's pickle format is never opened, because loading one runs code.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mjx_so101.errors import CheckpointError, ConfigError
from policies.groot.config import ModelConfig
from policies.groot.layout import EMBEDDING, OUTPUT_HEAD, embedding_shapes, required_shapes, unused_shapes

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
METADATA = "experiment_cfg/metadata.json"
LEROBOT_PREFIX = "_groot_model."
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
MOST_NAMES_LISTED = 12


def resolve_folder(path: str | Path, revision: str = "") -> Path:
    """Folder of a checkpoint: `path` itself, or the local copy of a Hugging Face repo id such as `owner/name`.

    revision: commit, tag or branch of the repo; default its main branch as it is now, and a line says which commit
    that is.

    Raises:
        ConfigError: if `path` is neither, the repo cannot be fetched, or a revision is given for a folder.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if revision:
            raise ConfigError(f"revision is {revision!r}, but {folder} is a folder here, not a repo: leave it out.")
        return folder
    if folder.exists():
        raise ConfigError(f"{folder} is a file; give the folder that holds config.json and the safetensors files.")
    if not REPO.fullmatch(str(path)):
        raise ConfigError(
            f"{path} is no folder here, and no Hugging Face repo id of the form owner/name; check the path, or "
            "make a checkpoint to try things out: so101 groot make-checkpoint my-checkpoint --size tiny."
        )
    return _fetch(str(path), revision)


def _fetch(repo: str, revision: str) -> Path:
    """Download a repo, or find it in the hub's cache. Raises ConfigError if that fails."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(
            f"{repo} is no folder here. To fetch it as a Hugging Face repo: pip install -e '.[hub]'; or download it "
            "yourself and give the folder."
        ) from error
    wanted = ["config.json", "*.safetensors", INDEX, METADATA]
    try:
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=wanted))
    except Exception as error:  # the hub raises many kinds: offline, not found, gated, disk full
        which = f" at revision {revision!r}" if revision else ""
        raise ConfigError(
            f"{repo} is no folder here and could not be fetched from Hugging Face{which} ({type(error).__name__}: "
            f"{error}). Check the names. Offline: download the repo elsewhere and give its folder."
        ) from error
    commit = commit_of(repo, folder)
    if commit and commit != revision:
        said = f"revision {revision!r}" if revision else "no --revision: the main branch as it is now"
        print(f"{repo}: commit {commit} ({said}); --revision {commit} takes the same again", file=sys.stderr)
    return folder


def commit_of(path: str | Path, folder: Path) -> str:
    """Commit of the Hugging Face repo `path` whose local copy is `folder`; empty for a checkpoint's own folder."""
    own = Path(path).expanduser().is_dir()
    return "" if own or not COMMIT.fullmatch(folder.name) else folder.name  # the hub names copies after the commit


def read_json(path: Path) -> dict[str, Any]:
    """Parsed JSON object. Raises CheckpointError if the file is missing or damaged."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing from the checkpoint: copy it from the output of its training."
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} holds a JSON {type(document).__name__}; an object is needed.")
    return document


def read_config(folder: Path) -> dict[str, Any]:
    """Parsed config.json. Raises ConfigError if the folder is no checkpoint."""
    if not (folder / "config.json").is_file():
        _refuse_adapter(folder)
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:MOST_NAMES_LISTED]) or "nothing"
        raise ConfigError(
            f"{folder} is not a checkpoint: no config.json. A GR00T N1.5 checkpoint holds config.json, {SINGLE} (or "
            f"shards with {INDEX}) and {METADATA}. Found: {found}."
        )
    return read_json(folder / "config.json")


def _refuse_adapter(folder: Path) -> None:
    """Raise ConfigError if the only weights are a LoRA adapter."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if names and all(name.startswith("adapter") for name in names):
        raise ConfigError(f"{folder} holds a LoRA adapter ({names[0]}) alone; merge it into the model and save that.")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: one, or the shards that its index names.

    Raises:
        ConfigError: if there are none, or only pickle files.
        CheckpointError: if the index or a shard that it names is missing or wrong.
    """
    if (folder / INDEX).is_file():
        return _shards(folder)
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    loose = sorted(p.name for p in folder.glob("*.safetensors"))
    _refuse_adapter(folder)
    if loose:
        raise CheckpointError(f"{folder} holds {', '.join(loose[:4])} but no {INDEX}: copy the index too.")
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES)
    if pickled:
        raise ConfigError(
            f"{folder} holds its weights as pickle ({', '.join(pickled[:4])}), which runs code when loaded and is "
            f"refused. Convert it to {SINGLE} with the program that wrote it."
        )
    raise ConfigError(f"{folder} is not a checkpoint: neither {SINGLE} nor {INDEX}.")


def _shards(folder: Path) -> list[Path]:
    mapping = read_json(folder / INDEX).get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(name, str) for name in mapping.values()):
        raise CheckpointError(f"{folder / INDEX} has no 'weight_map' of tensor to file names.")
    names = sorted(set(mapping.values()))
    foreign = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if foreign:
        raise ConfigError(f"{folder / INDEX} names {foreign[0]!r}; shards must be .safetensors files beside it.")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} of {len(names)} shards: {', '.join(missing)}.")
    return [folder / name for name in names]


class TensorFiles:
    """The open safetensors files of one checkpoint: names without LeRobot's prefix, shapes, and reading by name."""

    def __init__(self, files: Sequence[Path]):
        self._places: dict[str, tuple[Any, str]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for path in files:
            try:
                file = safe_open(path, framework="pt", device="cpu")
                keys = list(file.keys())
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path} is truncated or not a safetensors file: copy or download it again ({error})."
                ) from error
            for key in keys:
                name = key.removeprefix(LEROBOT_PREFIX)
                if name in self._places:
                    raise CheckpointError(f"{path} stores {name} a second time.")
                view = file.get_slice(key)
                self._places[name] = (file, key)
                self.shapes[name] = tuple(view.get_shape())
                self.dtypes[name] = view.get_dtype()

    def check(self, config: ModelConfig) -> None:
        """Compare every name, shape and dtype with the layout. Raises one ConfigError that reports all differences."""
        needed, embedding = required_shapes(config), embedding_shapes(config)
        known = {**needed, **embedding, **unused_shapes(config)}
        missing = sorted(set(needed) - set(self.shapes))
        if not set(embedding) & set(self.shapes):
            missing.append(f"{EMBEDDING} (or {OUTPUT_HEAD})")
        unexpected = sorted(set(self.shapes) - set(known))
        both = sorted(set(self.shapes) & set(known))
        shaped = [f"{n} is {self.shapes[n]}, not {known[n]}" for n in both if self.shapes[n] != known[n]]
        typed = [f"{n} is {self.dtypes[n]}" for n in both if self.dtypes[n] not in FLOAT_DTYPES]
        groups = {"missing": missing, "unexpected": unexpected, "mis-shaped": shaped, "not floating point": typed}
        if any(groups.values()):
            report = "".join(_listing(title, names) for title, names in groups.items() if names)
            raise ConfigError(
                f"The checkpoint's tensors are not those of its config:{report}\nFor sizes other than the 3B's give "
                "vision_config and text_config; a checkpoint of N1.6 or N1.7 cannot be loaded."
            )

    def read(self, name: str, index: int | slice | None = None) -> torch.Tensor:
        """Tensor on the CPU in its stored dtype, or the part of it at `index` of the first axis."""
        file, key = self._places[name]
        return file.get_tensor(key) if index is None else file.get_slice(key)[index]


def _listing(title: str, names: list[str]) -> str:
    return f"\n  {len(names)} {title}:" + "".join(f"\n    {name}" for name in names)


class Weights:
    """Reads tensors below a name prefix onto a device in one dtype, for one embodiment."""

    def __init__(self, files: TensorFiles, device: torch.device, dtype: torch.dtype, embodiment: int, prefix: str = ""):
        self.files = files
        self.device = device
        self.dtype = dtype
        self.embodiment = embodiment
        self.prefix = prefix

    def at(self, prefix: str) -> Weights:
        """The same below a longer prefix."""
        return Weights(self.files, self.device, self.dtype, self.embodiment, self.prefix + prefix)

    def tensor(self, *names: str) -> torch.Tensor:
        """Tensors joined along the first axis."""
        return self._place(torch.cat([self.files.read(self.prefix + name).to(self.dtype) for name in names]))

    def float32(self, name: str) -> torch.Tensor:
        """Tensor in float32, whatever the model's dtype: for what is computed once while loading."""
        return self.files.read(self.prefix + name).to(self.device, torch.float32)

    def of_embodiment(self, name: str) -> torch.Tensor:
        """The row of a per-embodiment tensor that belongs to this embodiment, in float32."""
        return self.files.read(self.prefix + name, self.embodiment).to(self.device, torch.float32)

    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Rows of the token embedding [len(ids), width]; no other row is read."""
        name = EMBEDDING if EMBEDDING in self.files.shapes else OUTPUT_HEAD
        rows = {i: self.files.read(name, slice(i, i + 1)) for i in set(ids)}
        return self._place(torch.cat([rows[i] for i in ids]).to(self.dtype))

    def has(self, name: str) -> bool:
        """True if the checkpoint stores a tensor of this name."""
        return self.prefix + name in self.files.shapes

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device).contiguous()
