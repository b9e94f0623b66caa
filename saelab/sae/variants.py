"""The one list of variants: a new one is its file and a line here.

The command line's subcommands, the reading of saved runs, the app's filters and the shared
contract tests all follow this union.
"""

from typing import Annotated

from pydantic import Field, TypeAdapter

from saelab.sae.abs_topk import AbsTopKConfig
from saelab.sae.topk import TopKConfig

SAEConfig = Annotated[
    TopKConfig | AbsTopKConfig,
    Field(discriminator="variant"),
]

VARIANTS = (TopKConfig, AbsTopKConfig)

SAE_CONFIG: TypeAdapter[SAEConfig] = TypeAdapter(SAEConfig)
"""Validates JSON into the configuration of the variant it names."""
