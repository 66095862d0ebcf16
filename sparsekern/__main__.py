"""``python -m sparsekern`` is the command line."""

import sys

from sparsekern.cli import main

sys.exit(main())
