"""What a checkpoint's tokenizer.json says of splitting text, against what transformers makes of it.

Transformers 5 takes only vocabulary and merges from the file for classes of its own, and builds the
rest anew. Of Qwen 2's architecture it always builds Qwen's, also where the file is of another.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.console import note

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

FILE = "tokenizer.json"
TEXTS = (
    "a cat's mat; they'll SEE WE'VE 1234567 of 89.10%, (x_1 == y[2]) && z->w != 0x1F\n\n\tif (a):",
    "a na\u00efve cafe\u0301 2\u00bd \u2014 \u65e5\u672c\u8a9e \u0440\u0443\u0441  end \r\n \n  . ",
)
"""What tokenizers split and normalise in different ways. They begin with a word: what is put before
a text may be decided outside of the file, and is not compared."""
N_WORDS = 64
"""Entries of the vocabulary that are compared too, for vocabularies without such texts."""


def as_stated(name: str, where: str, loaded: Any) -> Any:  # noqa: ANN401 - no common class
    """`loaded`, or the tokenizer of the checkpoint's tokenizer.json if it splits text otherwise.

    Args:
        name: what the model is called.
        where: its directory, or its name on the hub.
        loaded: what transformers read there.

    Raises:
        ValueError: the file is damaged.
    """
    import transformers

    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None or type(loaded) is transformers.PreTrainedTokenizerFast:
        return loaded
    path = _file(where)
    if path is None:
        return loaded
    from tokenizers import Tokenizer

    try:
        stated = Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises no narrower one.
        raise ValueError(f"{FILE}: {error}") from error
    if _alike(stated, backend):
        return loaded
    note(
        f"transformers takes the tokenizer of {name} for a {type(loaded).__name__}, which splits "
        f"text otherwise than its {FILE}; the file is followed."
    )
    return transformers.PreTrainedTokenizerFast.from_pretrained(where, trust_remote_code=False)


def _file(where: str) -> Path | None:
    """The file, in the directory or where the hub's files are kept; None if there is none."""
    if Path(where).is_dir():
        found: Any = Path(where) / FILE
        return found if found.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(where, FILE)
    return Path(found) if isinstance(found, str) else None


def _alike(stated: "Tokenizer", loaded: "Tokenizer") -> bool:
    """Whether all entries of one are in the other, and both split the same texts alike."""
    vocabulary = stated.get_vocab()
    if not vocabulary.items() <= loaded.get_vocab().items():
        return False
    ids = sorted(vocabulary.values())[:: max(1, len(vocabulary) // N_WORDS)]
    words = " ".join(stated.decode([i], skip_special_tokens=False) for i in ids)
    return all(
        _behind(stated.encode(text, add_special_tokens=False))
        == _behind(loaded.encode(text, add_special_tokens=False))
        for text in (*TEXTS, f"a {words}")
    )


def _behind(encoding: "Encoding") -> list[int]:
    """The tokens behind the first character."""
    places = zip(encoding.ids, encoding.offsets, strict=True)
    return [token for token, (begin, _) in places if begin > 0]
