# SPDX-License-Identifier: BSD-3-Clause
"""Train and score on the bundled testbed.

Train on the bundled captures of an office, rank a later period in which twelve kinds of abnormal traffic are mixed with
normal work, say why, and compare the result with simpler detectors. With --captures, write these captures into the
folder instead, so that other commands can be tried on them.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil

from sklearn_docids.cli._values import add_seed


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_seed(parser)
    parser.add_argument(
        "--output", default="docids-demo", metavar="DIR", help="folder to write to (default docids-demo)"
    )
    parser.add_argument("--captures", action="store_true", help="write the bundled captures, and train nothing")


def run(args: argparse.Namespace) -> None:
    """Run the demo, once there is a folder to write to."""
    try:
        os.makedirs(args.output, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"--output {args.output} is a file; the demo writes to a folder") from None
    if not os.access(args.output, os.W_OK):
        raise PermissionError(f"--output {args.output} cannot be written to")
    if args.captures:
        _write_captures(args.output)
        return
    from sklearn_docids.cli import _testbed

    _testbed.run(args.output, args.seed)


def _write_captures(output: str) -> None:
    """Copy the bundled captures and the truth about them; leave a file of somebody else as it is."""
    from sklearn_docids.datasets._testbed import FOLDER

    bundled = [path for path in sorted(FOLDER.rglob("*")) if path.suffix in (".xz", ".csv")]
    copies = [os.path.join(output, path.relative_to(FOLDER)) for path in bundled]
    for path, copy in zip(bundled, copies, strict=True):
        if os.path.exists(copy) and not filecmp.cmp(path, copy, shallow=False):
            raise FileExistsError(f"{copy} exists and is another file: name an empty folder as --output")
    for path, copy in zip(bundled, copies, strict=True):
        os.makedirs(os.path.dirname(copy), exist_ok=True)
        shutil.copyfile(path, copy)
    print(f"{len(bundled)} files in {output}: train.pcap.xz is normal; test.csv says what is abnormal in test.pcap.xz")
