"""``python -m dpsapf`` is the command ``dpsapf``, run by a warm process if there is one."""

import os
import sys

if "DPSAPF_WARM" in os.environ:
    from dpsapf.cli.warm import ask

    code = ask(sys.argv[1:])
    if code is not None:
        sys.exit(code)

from dpsapf.cli.main import main

sys.exit(main())
