"""saelab: from a language model's activations to explained features.

The names below are loaded when first used, so that `import saelab` costs nothing.
"""

from importlib import import_module

_PUBLIC = {
    "load_language_model": "saelab.lm.load",
    "load_corpus": "saelab.activations.corpus",
    "harvest": "saelab.activations.harvest",
    "HarvestOptions": "saelab.activations.harvest",
    "ActivationStore": "saelab.activations.store",
    "write_arrays": "saelab.activations.arrays",
    "verify": "saelab.activations.verify",
    "TopKConfig": "saelab.sae.topk",
    "BatchTopKConfig": "saelab.sae.batch_topk",
    "AbsTopKConfig": "saelab.sae.abs_topk",
    "MatryoshkaConfig": "saelab.sae.matryoshka",
    "HierarchicalTopKConfig": "saelab.sae.hierarchical_topk",
    "MatchingPursuitConfig": "saelab.sae.matching_pursuit",
    "GradientTopKConfig": "saelab.sae.gradient_topk",
    "StandardConfig": "saelab.sae.standard",
    "GatedConfig": "saelab.sae.gated",
    "JumpReLUConfig": "saelab.sae.jumprelu",
    "KSparseConfig": "saelab.sae.k_sparse",
    "BilinearConfig": "saelab.sae.bilinear",
    "register_variant": "saelab.sae.variants",
    "load_sae": "saelab.sae.storage",
    "save_sae": "saelab.sae.storage",
    "TrainConfig": "saelab.training.config",
    "train": "saelab.training.loop",
    "train_many": "saelab.training.loop",
    "logging_to": "saelab.training.sinks",
    "load_foreign_sae": "saelab.sae.interop.convert",
    "save_sae_lens": "saelab.sae.interop.convert",
    "adopt": "saelab.training.adopt",
    "Run": "saelab.training.run",
    "find_runs": "saelab.training.find",
    "Host": "saelab.host.host",
    "evaluate": "saelab.evaluation.evaluate",
    "load_evaluation": "saelab.evaluation.results",
    "Measurement": "saelab.evaluation.measurement",
    "register_measurement": "saelab.evaluation.measurement",
    "EvaluateOptions": "saelab.evaluation.options",
    "measure_tasks": "saelab.evaluation.tasks.measure",
    "TaskOptions": "saelab.evaluation.tasks.options",
    "with_encoder": "saelab.sae.with_encoder",
    "encoder_curves": "saelab.evaluation.encoder_curves",
    "held_out_rows": "saelab.evaluation.held_out",
    "other_text": "saelab.evaluation.other_text",
    "TextOptions": "saelab.evaluation.other_text",
    "collect_features": "saelab.analysis.features",
    "FeatureOptions": "saelab.analysis.features",
    "Features": "saelab.analysis.records",
    "latent_manifold": "saelab.analysis.manifold",
    "steering_scores": "saelab.analysis.steering.scores",
    "ScoreOptions": "saelab.analysis.steering.measures",
    "load_steering_scores": "saelab.analysis.steering.records",
    "with_maxima": "saelab.analysis.steering.edits",
    "Intervention": "saelab.analysis.steering.interventions",
    "Sampling": "saelab.analysis.steering.generate",
    "steer": "saelab.analysis.steering.generate",
    "dose_response": "saelab.analysis.steering.dose",
    "steering_success": "saelab.analysis.steering.success",
    "concept_steering": "saelab.analysis.steering.concept_steering",
    "measure_transport": "saelab.analysis.transport.measure",
    "TransportOptions": "saelab.analysis.transport.options",
    "load_transport": "saelab.analysis.transport.records",
    "head_attribution": "saelab.analysis.attention.heads",
    "direct_feature_attribution": "saelab.analysis.attention.dfa",
    "attribution_graph": "saelab.analysis.circuits.graph",
    "explain": "saelab.analysis.circuits.explain",
    "explain_runs": "saelab.analysis.circuits.explain",
    "figure": "saelab.drawing",
    "UsageError": "saelab.config",
}


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'saelab' has no attribute {name!r}")
    try:
        return getattr(import_module(_PUBLIC[name]), name)
    except ModuleNotFoundError as error:
        # Imported here, since `import saelab` costs nothing.
        from saelab.extras import explained

        raise explained(error) or error from error


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
