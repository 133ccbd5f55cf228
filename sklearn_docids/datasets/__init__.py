# SPDX-License-Identifier: BSD-3-Clause
"""Data: the bundled testbed, the paper's data sets, labelled references from folders, synthetic traffic for tests."""

from sklearn_docids.datasets._bos import load_bos_2018
from sklearn_docids.datasets._cic import load_cic_ids_2017
from sklearn_docids.datasets._folder import load_class_folder
from sklearn_docids.datasets._synthetic import make_traffic
from sklearn_docids.datasets._testbed import load_testbed
from sklearn_docids.datasets._ustc import load_ustc_tfc2016, load_ustc_tk2016

__all__ = [
    "load_bos_2018",
    "load_cic_ids_2017",
    "load_class_folder",
    "load_testbed",
    "load_ustc_tfc2016",
    "load_ustc_tk2016",
    "make_traffic",
]
