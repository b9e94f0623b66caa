"""Which extra of saelab brings a package that its core does without.

`pip install saelab` brings what loads an SAE and encodes with it. All else is imported where it is
used; without it, `required` and `explained` say in one sentence what to install.
"""

from importlib.util import find_spec

from saelab.config import UsageError

EXTRAS = {
    "h5py": ("train", "files of activations and features"),
    "einops": ("train", "what is measured of an SAE"),
    "plotly": ("figures", "figures"),
    "transformer_lens": ("lm", "language models"),
    "transformers": ("lm", "language models"),
    "tokenizers": ("lm", "language models"),
    "pyarrow": ("lm", "compressed tables"),
    "streamlit": ("app", "the feature browser"),
    "huggingface_hub": ("hub", "files of the Hugging Face Hub"),
    "datasets": ("hub", "data sets of the Hugging Face Hub"),
    "openai": ("explain", "a server that explains latents"),
    "triton": ("kernels", "kernels on a GPU"),
}
"""By the name that is imported: the extra that brings the package, and what it is for."""


def explained(error: ImportError) -> UsageError | None:
    """What the failed import of an optional package means to the caller; None for any other."""
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package not in EXTRAS:
        return None
    return UsageError(_sentence(package))


def required(package: str) -> None:
    """Check that an optional package is installed.

    Raises:
        UsageError: it is not; the sentence has the command that installs it.
    """
    if find_spec(package) is None:
        raise UsageError(_sentence(package))


def _sentence(package: str) -> str:
    extra, purpose = EXTRAS[package]
    name = package.replace("_", "-") if package == "transformer_lens" else package
    return (
        f"The package {name}, for {purpose}, is not installed: pip install 'saelab[{extra}]', or "
        "'saelab[all]' for everything."
    )
