"""What an exported SAE must say of the text that it was trained on."""

from saelab.sae.interop.stated import TrainedOn
from saelab.training.run import Run

HUB = "hf:"


def trained_on(run: Run) -> TrainedOn | None:
    """The run's text as other tools must read it; None of a run of arrays.

    Only a data set of the hub has a name elsewhere.
    """
    record = run.provenance()
    model, corpus = record["model"], record["corpus"]
    if model is None or corpus is None:
        return None
    source = str(corpus.get("source"))
    return TrainedOn(
        prepend_bos=model.get("bos_token_id") is not None,
        context_size=run.context_length,
        dataset=source.removeprefix(HUB) if source.startswith(HUB) else None,
        special_token_ids=tuple(record.get("domain", {}).get("special_token_ids", ())),
    )
