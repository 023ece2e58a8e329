"""How tests spoil a copy of a checkpoint."""

import json

from safetensors.torch import load_file, save_file


def rewrite(folder, change):
    """Write the weights of a checkpoint anew after `change` has returned other tensors."""
    path = folder / "model.safetensors"
    tensors = change(load_file(path))
    path.unlink()
    save_file(tensors, path)


def edit_json(path, change):
    """Write the parsed JSON of `path` anew after `change` has edited it."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
