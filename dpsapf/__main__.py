"""``python -m dpsapf`` is the command ``dpsapf``."""

import sys

from dpsapf.cli.main import main

sys.exit(main())
