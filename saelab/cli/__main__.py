"""`python -m saelab.cli`, for torchrun and for environments without the script."""

import sys

from saelab.cli import command

sys.exit(command())
