"""The one list of variants: a new one is its file and a line here.

The command line's subcommands, the reading of saved runs, the app's filters and the shared
contract tests all follow this union.
"""

from typing import Annotated, get_args

from pydantic import Field, TypeAdapter

from saelab.sae.abs_topk import AbsTopKConfig
from saelab.sae.base import AbstractSAEConfig
from saelab.sae.batch_topk import BatchTopKConfig
from saelab.sae.gradient_topk import GradientTopKConfig
from saelab.sae.hierarchical_topk import HierarchicalTopKConfig
from saelab.sae.jumprelu import JumpReLUConfig
from saelab.sae.k_sparse import KSparseConfig
from saelab.sae.matching_pursuit import MatchingPursuitConfig
from saelab.sae.matryoshka import MatryoshkaConfig
from saelab.sae.topk import TopKConfig

SAEConfig = Annotated[
    TopKConfig
    | BatchTopKConfig
    | AbsTopKConfig
    | MatryoshkaConfig
    | HierarchicalTopKConfig
    | MatchingPursuitConfig
    | GradientTopKConfig
    | JumpReLUConfig
    | KSparseConfig,
    Field(discriminator="variant"),
]

VARIANTS: tuple[type[AbstractSAEConfig], ...] = get_args(get_args(SAEConfig)[0])

SAE_CONFIG: TypeAdapter[SAEConfig] = TypeAdapter(SAEConfig)
"""Validates JSON into the configuration of the variant it names."""
