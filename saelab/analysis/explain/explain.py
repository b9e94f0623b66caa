"""Explaining a run's latents: the questions, and a set of explanations from the answers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from saelab.analysis.explain.evidence import evidence_of
from saelab.analysis.explain.output_side import VERSION as OUTPUT_VERSION
from saelab.analysis.explain.output_side import output_question, raises
from saelab.analysis.explain.prompts import (
    LONGEST_EXPLANATION,
    VERSION,
    explain_question,
    read_explanation,
)
from saelab.analysis.explain.records import (
    TEXTS,
    Explanation,
    ExplanationSet,
    name_of,
    now,
    read_set,
    set_path,
)
from saelab.analysis.explain.steered import SteeredTexts
from saelab.analysis.records import Features
from saelab.clients.asking import Budget, Pacing, ask
from saelab.clients.ledger import Ledger
from saelab.clients.question import Answer, Client, Question
from saelab.config import UsageError
from saelab.console import progress
from saelab.lock import check_held, writing
from saelab.training.run import Run

ASKED = "asked.jsonl"
ATTEMPTS = 3
"""Requests for one latent, at most (`explain_latent`)."""
TOKENS, COUNTED = "tokens", "counting/1"
"""The model that is none, and the version of what it says."""


@dataclass
class Explaining:
    """A set of explanations that is being made.

    Attributes:
        features: the run's features.
        texts: the set, as far as it is.
        ledger: what was asked and answered for it since.
        steered: what the latents make the model write, if that is what is explained.
    """

    features: Features
    texts: ExplanationSet
    ledger: Ledger
    steered: SteeredTexts | None = None

    def questions(self, latents: Iterable[int], *, again: bool = False) -> dict[int, Question]:
        """The question about each latent that fires and, unless `again`, is not explained yet.

        Those of an unfinished part are among them: the ledger has their answers, and their cost.
        """
        done = self.texts.by_latent.keys() - self._answered()
        wanted = [n for n in latents if self.features.fired(n) and (again or n not in done)]
        found = {}
        with progress("Questions", len(wanted), "latents") as bar:
            for latent in wanted:
                if (question := self._question(latent)) is not None:
                    found[latent] = question
                bar.advance(1)
        for question in found.values():
            # What explains nothing is asked again.
            answer = self.ledger.answers.get(question.key)
            if answer is not None and not read_explanation(answer.text):
                del self.ledger.answers[question.key]
        return found

    def _question(self, latent: int) -> Question | None:
        record = self.features[latent]
        if self.steered is not None:
            return output_question(record, self.steered)
        evidence = evidence_of(record)
        return explain_question(self.features, record, evidence) if evidence.shown else None

    def _answered(self) -> set[int]:
        """The latents of which the ledger has an answer that explains something."""
        answers = self.ledger.answers.items()
        parts = (key.split("/") for key, answer in answers if read_explanation(answer.text))
        return {int(part[1]) for part in parts if len(part) == 3 and part[1].isdecimal()}

    def keep(self, questions: Mapping[int, Question]) -> int:
        """Write the answers into the set; returns how many of the questions have none."""
        for latent, question in questions.items():
            answer = self.ledger.answers.get(question.key)
            if latent in self.texts.by_latent or answer is None:
                continue
            if text := read_explanation(answer.text):
                self.texts.by_latent[latent] = _explanation(text, answer)
        left = [n for n in questions if n not in self.texts.by_latent]
        # Answers about other latents may be those of a killed process.
        ended = not left and self._answered() <= self.texts.by_latent.keys()
        if ended:
            # Until then the ledger stays, and has the cost.
            self.texts.requests += self.ledger.requests
            self.texts.tokens += self.ledger.tokens
        if len(left) < len(questions):
            check_held(self.texts.path.parents[1])
            self.texts.write()
        if ended:
            self.ledger.forget()
        return len(left)


def _explanation(text: str, answer: Answer) -> Explanation:
    return Explanation(text, now(), answer.prompt_tokens, answer.completion_tokens)


def begin(
    run: Run,
    model: str,
    kind: str,
    name: str | None,
    prompt: str | None = None,
    side: str = "input",
) -> Explaining:
    """Start a set, or continue it.

    A set has one model, asked by one kind of client, about one side. Its name is the model's, with
    the side if it is the output, if not given. For the output side with a model, `steered` must be
    given before questions are made.

    Raises:
        UsageError: the run has no features, or those of other weights; or there is a set of this
            name by another model, or from another version of the prompt.
    """
    features = features_of(run)
    digest = str(features.file.facts.get("sae_sha256"))
    outward = side == "output"
    path = set_path(run.path, name or name_of(model) + ("-output" if outward else ""))
    prompt = prompt or (OUTPUT_VERSION if outward else VERSION)
    if (path / TEXTS).exists():
        texts = read_set(path)
        wanted = {"model": model, "side": side, "prompt": prompt, "sae_sha256": digest}
        for what, value in wanted.items():
            if (there := getattr(texts, what)) != value:
                raise UsageError(
                    f"{path} holds explanations with the {what} {there!r}, now it is {value!r}; "
                    "give another --name."
                )
    else:
        texts = ExplanationSet(path, model, kind, prompt, digest, side=side)
    return Explaining(features, texts, Ledger(path / ASKED))


def features_of(run: Run) -> Features:
    """The run's features: of all latents, or where these are missing, of the chosen ones.

    Raises:
        UsageError: they were not collected, or are of other weights.
    """
    run.check_finished()
    features = Features.of(run.path)
    if features.file.facts.get("sae_sha256") != run.weights_sha256:
        raise UsageError(
            f"{features.file.path} was made with other weights than {run.weights.name}; run "
            "`saelab features` again."
        )
    return features


def chosen(features: Features, latents: Sequence[int], first: int | None) -> Iterator[int]:
    """The latents that are meant: those given, or the `first` ones, or all with evidence.

    Raises:
        UsageError: there is no such latent, or no evidence of it.
    """
    features.check(latents)
    return iter(dict.fromkeys(latents) or features.latents[:first])


def explain_latent(run: Run, latent: int, client: Client) -> str:
    """Have the client explain one latent, in the set of its model; a sentence that says what came.

    At most ATTEMPTS requests are made.

    Raises:
        UsageError: as `begin`; the latent never fires; or another process writes the run.
    """
    with writing(run.path):
        explaining = begin(run, client.model, client.kind, None)
        if (told := explaining.texts.by_latent.get(latent)) is not None:
            return f"{client.model} has explained latent {latent} already: “{told.text}”."
        questions = explaining.questions([latent])
        if not questions:
            raise UsageError(f"Latent {latent} never fires, so there is nothing to explain.")
        most = ATTEMPTS * questions[latent].most_tokens
        ledger = explaining.ledger
        budget = Budget(ledger.requests + ATTEMPTS, ledger.tokens + most)
        try:
            why = ask(list(questions.values()), client, ledger, budget, Pacing(attempts=ATTEMPTS))
        finally:
            explaining.keep(questions)
    if (told := explaining.texts.by_latent.get(latent)) is None:
        return why or f"{client.model} gave no explanation of latent {latent}."
    spent = told.prompt_tokens + told.completion_tokens
    return f"{client.model} explains latent {latent}: “{told.text}” ({spent} tokens)."


def explain_by_tokens(explaining: Explaining, latents: Iterable[int]) -> None:
    """Explain by token statistics (`Features.fires_on`, `raises`); no model is asked."""
    features, texts = explaining.features, explaining.texts
    for latent in latents:
        if latent in texts.by_latent:
            continue
        inward = texts.side == "input"
        if text := features.fires_on(latent) if inward else raises(features[latent]):
            texts.by_latent[latent] = Explanation(text[:LONGEST_EXPLANATION], now())
    texts.write()
