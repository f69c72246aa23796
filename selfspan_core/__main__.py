"""`python -m selfspan_core`."""

import sys

from selfspan_core.serve.cli import main

sys.exit(main())
