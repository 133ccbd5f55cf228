# SPDX-License-Identifier: BSD-3-Clause
"""``python -m sklearn_docids`` is ``docids``."""

import sys

from sklearn_docids.cli import main

if __name__ == "__main__":
    sys.exit(main())
