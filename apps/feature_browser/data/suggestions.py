"""Beginnings of the run's own texts, as suggestions to try."""

from feature_browser.data.catalogue import RunCard
from feature_browser.data.reading import OpenRun, open_run
from saelab.config import UsageError
from saelab.training.run import Run

N_TEXTS, N_TOKENS = 3, 14


def suggestions(card: RunCard) -> list[str]:
    """A few texts for the run's model; none if the run has no features."""
    if not card.features_path.is_file():
        return []
    try:
        run = open_run(card)
        model = Run(card.path).provenance().get("model")
    except UsageError:
        return []
    special = model.get("special_token_ids", []) if isinstance(model, dict) else []
    lines = len(run.features.file["corpus/tokens"])
    texts = [_text(run, line, set(special)) for line in range(0, lines, max(1, lines // N_TEXTS))]
    return [text for text in texts[:N_TEXTS] if text.strip() and "\ufffd" not in text]


def _text(run: OpenRun, line: int, special: set[int]) -> str:
    file = run.features.file
    ids = file["corpus/tokens"][line, : N_TOKENS + 1].tolist()
    return file.table.text(token for token in ids if token >= 0 and token not in special)
