"""What every latent fires on and writes: collected in one streaming pass into features.h5.

`reading` streams the text and writes sparse codes to disk (`codes`). `evidence` turns them into the
datasets of the file (`saelab.analysis.feature_file`), a few latents at a time. `weights` adds what
needs no text. `saelab.analysis.records` reads the file.
"""

from saelab.analysis.features.collect import collect_features
from saelab.analysis.features.options import FeatureOptions

__all__ = ["FeatureOptions", "collect_features"]
