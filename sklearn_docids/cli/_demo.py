# SPDX-License-Identifier: BSD-3-Clause
"""Train and score on the bundled testbed.

Train on the bundled captures of an office, rank a later period in which twelve kinds of abnormal traffic are mixed with
normal work, say why, and compare the result with simpler detectors.
"""

from __future__ import annotations

import argparse
import os

from sklearn_docids.cli._values import add_seed


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_seed(parser)
    parser.add_argument(
        "--output", default="docids-demo", metavar="DIR", help="folder to write to (default docids-demo)"
    )


def run(args: argparse.Namespace) -> None:
    """Run the demo, once there is a folder to write to."""
    try:
        os.makedirs(args.output, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"--output {args.output} is a file; the demo writes to a folder") from None
    if not os.access(args.output, os.W_OK):
        raise PermissionError(f"--output {args.output} cannot be written to")
    from sklearn_docids.cli import _testbed

    _testbed.run(args.output, args.seed)
