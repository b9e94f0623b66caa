"""`python -m saelab.cli`, for torchrun and for environments without the script."""

import sys

from saelab.cli import main

sys.exit(main())
