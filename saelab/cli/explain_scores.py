"""`saelab explain --score` and `--calibrate`: explanations judged, and judges judged."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saelab.analysis.explain.calibrate import (
    Calibration,
    calibration,
    calibration_questions,
    cases,
)
from saelab.analysis.explain.calibrate_output import output_cases
from saelab.analysis.explain.explain import chosen, features_of
from saelab.analysis.explain.records import name_of, now, read_set, set_path
from saelab.analysis.explain.scores import WORDS, judged_path, scores_path, write_scores
from saelab.analysis.explain.trials import begin_judging, check_none_lost, scores_there
from saelab.cli.explain_asking import ExplainArguments, answered, client_of, import_answers
from saelab.cli.explain_tables import print_calibration, print_scores
from saelab.clients.files import write_questions
from saelab.clients.ledger import Ledger
from saelab.clients.question import Question, digest_of
from saelab.formats.json_file import read_sealed_json, write_sealed_json

if TYPE_CHECKING:
    from saelab.training.run import Run


def score(args: ExplainArguments, run: "Run") -> int:
    """Score a set of explanations; 1 if some questions have no answer yet."""
    features = features_of(run)
    texts = read_set(set_path(run.path, str(args.score)))
    latents = [n for n in chosen(features, args.latents, args.first) if n in texts.by_latent]
    steered = None
    if texts.side == "output":
        from saelab.analysis.explain.steer_texts import steered_texts

        steered = steered_texts(run, features, latents, model=args.model, device=args.device)
    judging = begin_judging(features, texts, latents, args.examples, args.controls, steered)
    judge = str(args.judge)
    if judge == WORDS:
        found = judging.scores(WORDS, None)
        path = write_scores(texts, found)
        print_scores(found)
        print(path)
        return 0
    check_none_lost(texts, shown_judge(judge), judging)
    ledger = Ledger(judged_path(texts.path, judge))
    questions = list(judging.questions.values())
    if args.export_prompts is not None:
        return exported(args.export_prompts, questions, judge)
    if not args.import_ and (there := scores_there(texts, shown_judge(judge), judging)):
        print_scores(there)
        return _not_again(scores_path(texts.path, there.judge), there.judge)
    why = answers_of(args, questions, judge, ledger)
    n_left = sum(question.key not in ledger.answers for question in questions)
    found = judging.scores(shown_judge(judge), ledger)
    if n_left:
        return continued(n_left, why)
    path = write_scores(texts, found)
    ledger.forget()
    print_scores(found)
    print(path)
    return 0


def _not_again(path: Path, judge: str) -> int:
    print(f"{judge} has answered all of this before; move {path.name} away to ask anew.")
    print(path)
    return 0


def calibrate(args: ExplainArguments, directory: Path) -> int:
    """Calibrate a judge; 1 if some questions have no answer yet."""
    judge, inward = str(args.judge), args.side == "input"
    found = (cases if inward else output_cases)(args.first, args.examples)
    stem = name_of(judge) if inward else f"output_{name_of(judge)}"
    path = directory / f"calibration_{stem}.json"
    if judge == WORDS:
        return _calibrated(path, calibration(WORDS, found, None), None)
    ledger = Ledger(directory / f"asked_{stem}.jsonl")
    questions = list(calibration_questions(found).values())
    if args.export_prompts is not None:
        return exported(args.export_prompts, questions, judge)
    if not args.import_ and _is_calibrated(path, shown_judge(judge), digest_of(questions)):
        return _not_again(path, shown_judge(judge))
    why = answers_of(args, questions, judge, ledger)
    if n_left := sum(question.key not in ledger.answers for question in questions):
        return continued(n_left, why)
    return _calibrated(
        path, calibration(shown_judge(judge), found, ledger), ledger, digest_of(questions)
    )


def _is_calibrated(path: Path, judge: str, asked: str) -> bool:
    """Whether the file has what this judge made of the same questions."""
    values = read_sealed_json(path) if path.exists() else {}
    return (values.get("judge"), values.get("asked")) == (judge, asked)


def _calibrated(path: Path, found: Calibration, ledger: Ledger | None, asked: str = "") -> int:
    cost = {"requests": ledger.requests, "tokens": ledger.tokens} if ledger else {}
    values = {"judge": found.judge, "at": now(), "cost": cost, "n_unread": found.n_unread}
    write_sealed_json(path, {**values, "asked": asked, "kinds": found.summary()})
    if ledger is not None:
        ledger.forget()
    print_calibration(found)
    print(path)
    return 0


def answers_of(
    args: ExplainArguments, questions: Sequence[Question], judge: str, ledger: Ledger
) -> str:
    """Have the judge answer, or read its answers from a file; why it ended before its end."""
    if args.import_ is not None:
        import_answers(args.import_, questions, ledger)
        return ""
    return answered(args, questions, client_of(args, judge), ledger)


def exported(path: Path, questions: Sequence[Question], judge: str) -> int:
    """Write the questions to a file; 0."""
    write_questions(path, questions, judge)
    print(f"{len(questions)} questions; their answers are read by --import")
    print(path)
    return 0


def shown_judge(judge: str) -> str:
    """The judge's name in results: of a local checkpoint, its directory's."""
    path = Path(judge)
    return path.resolve().name if path.exists() else judge


def continued(n_left: int, why: str) -> int:
    """Say that some questions have no answer, and why; 1."""
    left = f"{n_left} questions have no answer yet, and the same command continues"
    print(f"{left}: {why}" if why else f"{left}.")
    return 1
