"""The options of tasks, and the rules by which papers measure them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, PositiveFloat

from saelab.config import Config, Heading, UsageError


class TaskRules(NamedTuple):
    """How texts become rows, and how latents are ranked.

    Attributes:
        pool: `mean` of the tokens that the SAE applies to, or the `last` of them.
        length: most tokens of a text, <bos> included.
        keep: which end of a longer text is kept.
        n_train, n_test: most texts of a task.
        ranking: latents in the order of |mean with the label - mean without it| (`difference`), or
            of that over their mean |activation| where they fire (`normalised`).
    """

    pool: Literal["mean", "last"]
    length: int
    keep: Literal["start", "end"]
    n_train: int
    n_test: int
    ranking: Literal["difference", "normalised"]


RULES = {
    "saebench": TaskRules("mean", 128, "start", 4000, 1000, "difference"),
    "sae-probes": TaskRules("last", 1024, "end", 1024, 1000, "normalised"),
}

DEFAULT_RULES = {True: "sae-probes", False: "saebench"}
"""By whether the data are of sae-probes."""

N_EXAMPLES = {"saelab": 4, "saebench": 10}
"""Solved examples before a word of --letters, by its rules."""

TASKS = ("probe", "tpp", "scr", "letters", "ravel", "unlearn")
BELONGS = {
    "second_label_field": "scr",
    **dict.fromkeys(("n_words", "n_examples"), "letters"),
    **dict.fromkeys(("attributes", "n_pairs"), "ravel"),
    **dict.fromkeys(("keep", "forget_text", "keep_text", "n_text_tokens", "clamp"), "unlearn"),
}
"""Options that only one task reads."""


def option(field: str) -> str:
    """The option of a field, as a user gives it."""
    return "--" + field.replace("_", "-")


class TaskOptions(Config):
    """Which tasks are measured, and on how much."""

    probe: Annotated[tuple[str, ...], Heading("Tasks")] = ()
    """Sparse probing: CSV, TSV or JSONL files with a text and a label in each row; sae-probes: the
    113 tasks of that package, if it is installed; sae-probes:NAME: one of its tables. A label of
    more than two classes is probed class by class against the others."""
    tpp: tuple[str, ...] = ()
    """Targeted probe perturbation: the same kinds of data, of three or more classes."""
    scr: tuple[str, ...] = ()
    """Spurious correlation removal: files with two labels of two classes in each row, or
    FIRST+SECOND for two data sets that share texts."""
    letters: bool = False
    """First-letter absorption, on the words of the model's vocabulary."""
    ravel: Path | None = None
    """RAVEL: the folder of its files, ravel_KIND_entity_attributes.json and
    ravel_KIND_attribute_to_prompts.json for each kind of entity."""
    unlearn: Path | None = None
    """Unlearning: a JSONL file of multiple choice questions (question, choices, answer) about what
    is to be forgotten; its name is the subject. Needs --keep, --forget-text and --keep-text."""
    text_field: Annotated[str, Heading("Data")] = "text"
    """The field or column of the text."""
    label_field: str = "label"
    """The field or column of the label."""
    second_label_field: str = "spurious"
    """With --scr FILE: the field or column of the second label."""
    first: int | None = Field(default=None, gt=0)
    """With sae-probes: only its first tasks."""
    rules: Literal["saebench", "sae-probes"] | None = None
    """saebench: the mean over a text's first 128 tokens, latents ranked by the difference of means,
    4,000 texts to fit and 1,000 to score. sae-probes: the last of at most 1,024 tokens, ranked by
    the difference over the mean activation, 1,024 texts to fit and 1,000 to score. Default:
    sae-probes for its data, saebench for other data. With --letters: saebench finds directions and
    a letter's own latents as SAEBench does; default: saelab's own rules."""
    n_train: int | None = Field(default=None, ge=40)
    """Most texts of a task to choose latents and fit probes on."""
    n_test: int | None = Field(default=None, ge=40)
    """Most texts of a task to score on."""
    length: int | None = Field(default=None, ge=2)
    """Most tokens of a text, <bos> included; of a longer one, saebench reads the start, sae-probes
    the end."""
    n_words: int = Field(default=300, ge=100)
    """With --letters: most words of a letter, four fifths to fit and the others to score."""
    n_examples: int | None = Field(default=None, ge=0, le=50)
    """With --letters: solved examples before each word; default: 4, or 10 with --rules saebench."""
    attributes: Annotated[tuple[str, ...], Heading("RAVEL and unlearning")] = ()
    """With --ravel: the attributes; default: those that SAEBench measures, else all of a kind."""
    n_pairs: int = Field(default=5000, ge=40)
    """With --ravel: most pairs of prompts of an attribute, seven tenths to fit."""
    keep: tuple[Path, ...] = ()
    """With --unlearn: files of questions about other subjects."""
    forget_text: str | None = None
    """With --unlearn: a text about what is to be forgotten, in a form that saelab harvest reads."""
    keep_text: str | None = None
    """With --unlearn: an ordinary text."""
    n_text_tokens: int = Field(default=2**20, gt=0)
    """With --unlearn: tokens of each text, rounded up to a whole batch."""
    clamp: tuple[PositiveFloat, ...] = (25.0, 50.0, 100.0, 200.0)
    """With --unlearn: what latents are set to, below 0; the default is SAEBench's for Gemma 2."""
    seed: int = 0
    """Decides which texts, words and random latents are drawn."""
    batch_size: int | None = Field(default=None, gt=0)
    """Texts per forward pass; default: 4,096 tokens, at least 32 texts, or fewer if these would not
    fit in memory."""

    @property
    def any(self) -> bool:
        """Whether any task is asked for."""
        return any(getattr(self, task) for task in TASKS)

    def check(self) -> None:
        """Refuse options that name no task.

        Raises:
            UsageError: the message names the options.
        """
        if self.first is not None and "sae-probes" not in self.probe:
            raise UsageError("--first belongs to --probe sae-probes; leave it out.")
        self._check_belongings()
        if self.rules is not None and not any((self.probe, self.tpp, self.scr, self.letters)):
            raise UsageError("--rules belongs to --probe, --tpp, --scr or --letters; leave it out.")
        if self.rules == "sae-probes" and not any((self.probe, self.tpp, self.scr)):
            raise UsageError(
                "--letters has no rules of sae-probes; give --rules saebench, or none."
            )
        if self.unlearn is not None:
            for name in ("keep", "forget_text", "keep_text"):
                if not getattr(self, name):
                    raise UsageError(f"--unlearn also needs {option(name)}.")

    def _check_belongings(self) -> None:
        for name, task in BELONGS.items():
            if name in self.model_fields_set and not getattr(self, task):
                raise UsageError(f"{option(name)} belongs to {option(task)}; leave it out.")
        if "second_label_field" in self.model_fields_set and all("+" in each for each in self.scr):
            raise UsageError(
                "--second-label-field belongs to --scr FILE; data sets joined by + have one label "
                "each."
            )

    def letters_setting(self) -> dict[str, Any]:
        """The rules, words, examples and seed of --letters."""
        rules = "saebench" if self.rules == "saebench" else "saelab"
        n = N_EXAMPLES[rules] if self.n_examples is None else self.n_examples
        return {"rules": rules, "n_words": self.n_words, "n_examples": n, "seed": self.seed}

    def rules_for(self, *, packaged: bool) -> tuple[str, TaskRules]:
        """The rules for data of sae-probes, or other data, and their name."""
        name = self.rules or DEFAULT_RULES[packaged]
        given = {key: getattr(self, key) for key in ("n_train", "n_test", "length")}
        kept = {key: value for key, value in given.items() if value is not None}
        return name, RULES[name]._replace(**kept)


@dataclass(frozen=True)
class TaskSetting:
    """How a task was measured; results of one setting may be averaged.

    Attributes:
        rules: name of the rules.
        length, n_train, n_test: most tokens of a text, most texts.
    """

    rules: str
    length: int
    n_train: int
    n_test: int
    seed: int

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Cost:
    """What a measurement took.

    Attributes:
        memory: the process's largest memory so far in bytes; on a GPU, the largest on the GPU.
        n_tokens: tokens that the model read.
    """

    seconds: float
    memory: int
    n_tokens: int


@dataclass(frozen=True)
class FigureWithInterval:
    """A figure and the ends of its 95 % interval, which are None if it has none."""

    value: float
    low: float | None = None
    high: float | None = None
