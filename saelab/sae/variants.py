"""The list of variants; a new variant is one file and one line here.

The command line's subcommands, the reading of saved runs, `saelab bench` and the shared contract
tests all follow `variants()`. Other packages add theirs as entry points of the group
`saelab.variants` (name = "package.module:Config"), notebooks by `register_variant`.
"""

from inspect import get_annotations
from typing import Annotated, Literal, TypeVar, get_args, get_origin

from pydantic import PlainValidator, SerializeAsAny, TypeAdapter, ValidationError

from saelab.config import UsageError, first_problem
from saelab.registry import Registry
from saelab.sae.base import AbstractSAEConfig

GROUP = "saelab.variants"
BUILT_IN = {
    "topk": "saelab.sae.topk:TopKConfig",
    "batch-topk": "saelab.sae.batch_topk:BatchTopKConfig",
    "abs-topk": "saelab.sae.abs_topk:AbsTopKConfig",
    "matryoshka": "saelab.sae.matryoshka:MatryoshkaConfig",
    "hierarchical-topk": "saelab.sae.hierarchical_topk:HierarchicalTopKConfig",
    "matching-pursuit": "saelab.sae.matching_pursuit:MatchingPursuitConfig",
    "gradient-topk": "saelab.sae.gradient_topk:GradientTopKConfig",
    "standard": "saelab.sae.standard:StandardConfig",
    "gated": "saelab.sae.gated:GatedConfig",
    "jumprelu": "saelab.sae.jumprelu:JumpReLUConfig",
    "mutual-choice": "saelab.sae.mutual_choice:MutualChoiceConfig",
    "feature-choice": "saelab.sae.feature_choice:FeatureChoiceConfig",
    "k-sparse": "saelab.sae.k_sparse:KSparseConfig",
    "bilinear": "saelab.sae.bilinear:BilinearConfig",
    "bsc": "saelab.sae.bsc:BSCConfig",
    "tsc": "saelab.sae.tsc:TSCConfig",
    "gsc": "saelab.sae.gsc:GSCConfig",
    "crosscoder": "saelab.sae.crosscoder:CrosscoderConfig",
    "clt": "saelab.sae.clt:CLTConfig",
}
"""The options of each variant, by its name. If several variants have the codes of a foreign file,
the first reads it."""

ConfigT = TypeVar("ConfigT", bound=AbstractSAEConfig)


def register_variant(config: type[ConfigT]) -> type[ConfigT]:
    """Make your own variant known in this process, as built-in ones are; usable as a decorator.

    Returns:
        `config`, the class of its options.

    Raises:
        UsageError: the variant has no name of its own, or another variant has the same name.
    """
    REGISTRY.register(config)
    return config


def variants() -> dict[str, type[AbstractSAEConfig]]:
    """The options of every variant by its name: built-in, of other packages, registered.

    A package's variant that cannot be imported is left out; standard error says so once.
    """
    return REGISTRY.everything()


def variant(name: str) -> type[AbstractSAEConfig]:
    """The options of the variant of that name.

    Raises:
        UsageError: no variant has this name.
    """
    return REGISTRY.find(name)


def check_variant(config: AbstractSAEConfig) -> None:
    """Refuse options whose name leads to another class, which a saved SAE would be loaded as.

    Raises:
        UsageError: the variant is not registered, or it inherits another variant's name.
    """
    _own_name(type(config))
    found = variant(config.variant)
    if found is not type(config):
        raise UsageError(
            f"{type(config).__name__} is not the variant {config.variant!r}, which is "
            f"{found.__name__}; call saelab.register_variant({type(config).__name__})."
        )


def sized(name: str, d_sae: int, k: float | int) -> AbstractSAEConfig:
    """The variant of that name and width, with k latents per row if it has such an option.

    All other options have their defaults.

    Raises:
        UsageError: no variant has this name, or it cannot have this width or k.
    """
    cls = variant(name)
    options = {"d_sae": d_sae, "k": k}
    try:
        return cls.model_validate({n: v for n, v in options.items() if n in cls.model_fields})
    except ValidationError as error:
        raise UsageError(f"{first_problem(error)}; got {d_sae=}, {k=}.") from None


def _parse(value: object) -> AbstractSAEConfig:
    if isinstance(value, AbstractSAEConfig):
        check_variant(value)
        return value
    name = value.get("variant") if isinstance(value, dict) else None
    if not isinstance(name, str):
        raise ValueError("the options of an SAE need the name of their variant")
    return variant(name).model_validate(value)


SAEConfig = Annotated[SerializeAsAny[AbstractSAEConfig], PlainValidator(_parse)]

SAE_CONFIG: TypeAdapter[AbstractSAEConfig] = TypeAdapter(SAEConfig)
"""Validates JSON into the configuration of the variant that the JSON names."""


def _own_name(config: object) -> str:
    if not (isinstance(config, type) and issubclass(config, AbstractSAEConfig)):
        raise UsageError(f"{config!r} is no variant: derive its options from AbstractSAEConfig.")
    field, example = config.model_fields["variant"], 'give it `variant: Literal["x"] = "x"`'
    whose = [c for c in config.__mro__[1:] if "variant" in get_annotations(c)]
    if "variant" not in get_annotations(config):
        raise UsageError(
            f"{config.__name__} inherits the name {field.default!r} of {whose[0].__name__}, as "
            f"which it would be loaded; {example}."
        )
    if get_origin(field.annotation) is not Literal or get_args(field.annotation) != (
        field.default,
    ):
        raise UsageError(f"{config.__name__} has no fixed name; {example}.")
    return field.default


REGISTRY: Registry[type[AbstractSAEConfig]] = Registry(
    "variant", GROUP, BUILT_IN, _own_name, lambda c: f"{c.__module__}.{c.__qualname__}"
)
