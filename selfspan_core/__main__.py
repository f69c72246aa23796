"""`python -m selfspan_core`."""

import sys

from selfspan_core.cli import main

sys.exit(main())
