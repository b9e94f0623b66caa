"""What of a language model is on this machine; nothing is loaded, and nothing fetched."""

from pathlib import Path

from saelab.lm.tiny import MODEL_DIR


def file_at_hand(model: str, name: str) -> Path | None:
    """A file of the model called `model`: in the checkpoint's directory, or in the hub's cache."""
    directory = MODEL_DIR if model == "tiny" else Path(model)
    if directory.is_dir():
        return directory / name if (directory / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, name)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def weights_at_hand(model: str) -> int | None:
    """Bytes of the model's weights as they are stored; None if they are not on this machine."""
    names = ("model.safetensors", "model.safetensors.index.json")
    found = next((path for name in names if (path := file_at_hand(model, name))), None)
    if found is None:
        return None
    return sum(part.stat().st_size for part in found.parent.glob("*.safetensors"))
