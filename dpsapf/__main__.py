"""``python -m dpsapf`` is the command ``dpsapf``."""

import sys

from dpsapf.cli import main

sys.exit(main())
