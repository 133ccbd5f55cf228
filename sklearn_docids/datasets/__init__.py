# SPDX-License-Identifier: BSD-3-Clause
"""Data: labelled references from folders of captures, and traffic written on the spot for examples and tests."""

from sklearn_docids.datasets._folder import load_class_folder
from sklearn_docids.datasets._synthetic import make_traffic
from sklearn_docids.datasets._ustc import load_ustc_tfc2016, load_ustc_tk2016

__all__ = ["load_class_folder", "load_ustc_tfc2016", "load_ustc_tk2016", "make_traffic"]
