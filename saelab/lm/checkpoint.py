"""Reading a checkpoint: complete, as its configuration describes it, or refused in one sentence.

Transformers fills missing weights with random numbers and drops superfluous ones; here both are
refused by name. No pickle is read, and no code from a checkpoint is run.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from saelab.collector import keep_imported, paused
from saelab.config import UsageError
from saelab.console import told_if_slow
from saelab.lm.tiny import MODEL_DIR
from saelab.lm.tokenizer_file import as_stated
from saelab.moved import remedy

HARMLESS = re.compile(
    r"(^|\.)(rotary_emb\..*|inv_freq|masked_bias|attn\.bias|attention\.bias|position_ids"
    r"|embed_positions\.weights)$"
)
"""Buffers that older versions saved with the weights and newer ones compute."""
NAMED = 3
"""Number of weights that a refusal names; the rest are counted."""
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def location(name: str) -> str:
    """Where the model called `name` is: a directory, or a name on the Hugging Face hub.

    Raises:
        UsageError: it is a file, or a directory without a checkpoint.
    """
    if name == "tiny":
        return str(MODEL_DIR)
    path = Path(name)
    if path.is_file():
        raise UsageError(f"{path} is a file; give the directory that it lies in.")
    if path.is_dir() and not (path / "config.json").is_file():
        raise UsageError(f"{path} is a directory without a config.json, so not a checkpoint.")
    return name


@paused()
def read_checkpoint(
    name: str, *, dtype: torch.dtype, attention: str, runner: str = "transformers"
) -> tuple[Any, Any]:
    """The causal language model called `name`, on the CPU, and its tokenizer.

    Args:
        name: as for `load_language_model`.
        dtype: dtype of the weights.
        attention: transformers' name of the attention's implementation.
        runner: the module that will run the model, which is imported before there are weights.

    Raises:
        UsageError: the checkpoint or its tokenizer is missing; transformers does not know its
            architecture, or it is no causal language model; weights are missing, misshapen,
            superfluous or pickled.
    """
    with told_if_slow(f"loading the model {name} ..."):
        import transformers

        transformers.utils.logging.disable_progress_bar()
        where = location(name)
        read_model_config(name)
        _check_files(name, Path(where))
        tokenizer = _tokenizer(name, where)
        import_module(runner)
        keep_imported()
        with _explained(name):
            both: Any = transformers.AutoModelForCausalLM.from_pretrained(
                where,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                trust_remote_code=False,
                # Other implementations of the grouped product do not support float64.
                **({"experts_implementation": "eager"} if dtype == torch.float64 else {}),
            )
        model, found = both
        _check_weights(name, found)
    return model, tokenizer


def read_model_config(name: str, *, fetch: bool = True) -> Any:  # noqa: ANN401 - one per architecture
    """The configuration of the causal language model called `name`; without `fetch`, one at hand.

    Raises:
        UsageError: as for `read_checkpoint`; or it is not on this machine, and must not be fetched.
    """
    import transformers

    where, local = location(name), {"local_files_only": not fetch}
    with _explained(name):
        # Some versions of transformers return what else there is, others stumble over it.
        try:
            config, _ = transformers.PreTrainedConfig.get_config_dict(where, **local)
        except TypeError:
            config = None
        if not isinstance(config, dict):
            raise ValueError("config.json holds no JSON object")
    _check_config(name, config)
    with _explained(name):
        return transformers.AutoConfig.from_pretrained(where, trust_remote_code=False, **local)


def _check_config(name: str, config: Mapping[str, Any]) -> None:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        if config.get("auto_map"):
            raise UsageError(
                f"{name} needs Python code of its own (auto_map in config.json), which saelab does "
                "not run; take a checkpoint of an architecture that transformers has."
            )
        raise UsageError(
            f"{name} is of model_type {kind!r}, which transformers {transformers.__version__} does "
            "not know; a newer transformers may."
        )
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if kind not in causal:
        raise UsageError(f"{name} is of model_type {kind!r}, which is no causal language model.")
    stated = config.get("architectures") or [causal[kind]]
    if not set(stated) & set(causal.values()):
        raise UsageError(
            f"{name} holds a {stated[0]} (architectures in config.json), which has no head that "
            f"predicts the next token; saelab needs a {causal[kind]}."
        )


def _check_files(name: str, directory: Path) -> None:
    """Refuse a local checkpoint with missing files; transformers checks those of the hub."""
    if not directory.is_dir() or (directory / "model.safetensors").is_file():
        return
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise UsageError(f"{index} is no index of shards.") from error
        if missing := sorted(s for s in shards if not (directory / str(s)).is_file()):
            raise UsageError(f"{name} lacks {_some(missing)} of its {len(shards)} shards.")
        return
    pickled = [*directory.glob("*.bin"), *directory.glob("*.pt"), *directory.glob("*.pth")]
    if pickled:
        raise UsageError(
            f"{name} has only pickled weights ({pickled[0].name}), which saelab does not read; "
            "load it with transformers once and save_pretrained() it, which writes safetensors."
        )
    raise UsageError(f"{name} has no weights: there is no model.safetensors.")


def _check_weights(name: str, found: Mapping[str, Any]) -> None:
    if shapes := found["mismatched_keys"]:
        key, stored, expected = min(shapes)
        more = f" (and {len(shapes) - 1} more)" if len(shapes) > 1 else ""
        raise UsageError(
            f"{name} does not fit its config.json: {key}{more} is {tuple(stored)} in the file and "
            f"{tuple(expected)} in the model."
        )
    if missing := sorted(found["missing_keys"]):
        raise UsageError(
            f"{name} lacks the weights {_some(missing)}, which would be random; the file is "
            "incomplete, or config.json is of another model."
        )
    if extra := sorted(k for k in found["unexpected_keys"] if not HARMLESS.search(k)):
        raise UsageError(
            f"{name} has weights that its config.json gives no place: {_some(extra)}; the model "
            "would run without them."
        )


def _tokenizer(name: str, where: str) -> Any:  # noqa: ANN401 - transformers has no common class
    import transformers

    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        # Without a vocabulary some classes build a tokenizer that knows only special tokens.
        if set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
            return as_stated(name, where, tokenizer)
        reason: Exception | None = None
    except _errors() as error:
        reason = error
    files = [file for file in VOCABULARY_FILES if (Path(where) / file).is_file()]
    if reason is not None and "custom code" in str(reason):
        raise UsageError(
            f"The tokenizer of {name} needs Python code of its own, which saelab does not run."
        ) from reason
    if not files and Path(where).is_dir():
        raise UsageError(
            f"{name} has no tokenizer: none of {', '.join(VOCABULARY_FILES)} is there; copy the "
            "tokenizer files of the model that it was made from."
        ) from reason
    if ".model" in " ".join(files) and "sentencepiece" in str(reason).lower():
        raise UsageError(
            f"The tokenizer of {name} needs the package sentencepiece: pip install sentencepiece."
        ) from reason
    what = f"({_first_line(reason)})" if reason is not None else "(it has no vocabulary)"
    raise UsageError(f"Cannot load the model {name!r}: its tokenizer cannot be read {what}.")


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Any error inside as one sentence, without transformers' own report."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except _errors() as error:
        if Path(name).is_absolute() and not Path(name).exists():
            raise UsageError(f"The model {name} is not there; {remedy('--model')}.") from error
        if not Path(name).exists() and isinstance(error, OSError):
            raise UsageError(
                f"Cannot load the model {name!r}: it is not 'tiny', not a checkpoint directory, "
                f"and fetching it failed ({_first_line(error)})."
            ) from error
        if type(error).__name__ == "SafetensorError":
            raise UsageError(
                f"The weights of {name} are damaged or incomplete ({_first_line(error)}); copy or "
                "fetch them again."
            ) from error
        raise UsageError(f"Cannot load the model {name!r}: {_first_line(error)}.") from error
    finally:
        logger.setLevel(level)


def _errors() -> tuple[type[Exception], ...]:
    """The errors that transformers raises on unexpected files."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    plain = (OSError, ValueError, RuntimeError, ImportError, LookupError, TypeError, AttributeError)
    return (*plain, SafetensorError, StrictDataclassError)


def _first_line(error: Exception) -> str:
    """The first line of a message, with the kind of error if the message alone is unclear."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, LookupError) or not lines:
        return f"{type(error).__name__} {''.join(lines[:1])}".strip()
    # Some messages are a heading with the reason below it.
    return (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0]).rstrip(".")


def _some(names: Iterable[str]) -> str:
    """The first few names, and the number of others."""
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
