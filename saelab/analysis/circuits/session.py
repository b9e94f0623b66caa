"""A language model and its SAEs, kept loaded between questions."""

from collections.abc import Sequence
from pathlib import Path

from saelab.analysis.circuits.explain import Circuit, CircuitOptions, explain, save_circuit
from saelab.config import UsageError
from saelab.console import stage
from saelab.files import check_writable
from saelab.host.host import Host
from saelab.lm.load import load_recorded_model
from saelab.lm.prompt import chat_prompt
from saelab.lm.protocol import LanguageModel
from saelab.sae.decoder import check_decoder
from saelab.training.run import Run
from saelab.training.sets import runs_of


class Session:
    """Answers questions about the same runs one after the other; others are loaded when asked for.

    Args:
        device: as of `saelab circuit --device`.
        model: where the language model is now, if not where the runs say.
    """

    def __init__(self, device: str = "auto", model: str | None = None) -> None:
        self._device, self._name = device, model
        self._lm: LanguageModel | None = None
        self._lm_key: tuple[str, ...] = ()
        self._hosts: dict[tuple[Path, int], Host] = {}

    def explain(
        self, paths: Sequence[Path], prompt: str, options: CircuitOptions, *, chat: bool = False
    ) -> tuple[Circuit, Path]:
        """The circuit of a prompt by the runs and sets at `paths`, and the path of its JSON file.

        Raises:
            UsageError: as `saelab circuit` does.
        """
        runs = usable_runs(paths)
        check_writable(runs[0].path, "the run")
        lm, hosts = self.loaded(runs)
        text = chat_prompt(lm, prompt) if chat else prompt
        found = explain(lm, hosts, text, options)
        stage("Save the graph")
        return found, save_circuit(found, runs, text, lm)

    def loaded(self, runs: Sequence[Run]) -> tuple[LanguageModel, list[Host]]:
        """The runs' model, and each run's SAE in it.

        Raises:
            UsageError: the model does not exist, or a run is of another model.
        """
        facts = runs[0].model()
        key = tuple(str(facts.get(name)) for name in ("name", "weights_digest", "dtype"))
        if self._lm is None or key != self._lm_key:
            stage("Load the language model")
            self._hosts, self._lm = {}, None
            self._lm = load_recorded_model(facts, name=self._name, device=self._device)
            self._lm_key = key
        stage(f"Load {len(runs)} SAEs" if len(runs) > 1 else "Load the SAE")
        before, self._hosts = self._hosts, {}
        for run in runs:
            at = run.path.resolve(), run.weights.stat().st_mtime_ns
            self._hosts[at] = before.get(at) or Host.of_run(run, self._lm)
        return self._lm, list(self._hosts.values())


def usable_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs at these paths, sets resolved, whose latents a circuit can have.

    Raises:
        UsageError: a set lacks a run, a run is not finished, was given twice, or its latents have
            no decoder rows.
    """
    runs = runs_of(paths)
    for run in runs:
        run.check_finished()
        check_decoder(run.config.sae)
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise UsageError("A run was given twice; give each once.")
    return runs
