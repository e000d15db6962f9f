"""`python -m mtlbench.cli`: the command line without its installed script."""

import sys

from mtlbench.cli import main

sys.exit(main())
