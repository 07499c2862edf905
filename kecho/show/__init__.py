# SPDX-License-Identifier: MIT
"""What people see: tables, histograms, pictures."""

import logging
import os

# Before anything here imports Matplotlib: not the user's backend, which may need a notebook or a screen, and no word of
# what is wrong with the user's settings.
os.environ["MPLBACKEND"] = "agg"
logging.getLogger("matplotlib").setLevel(logging.CRITICAL)
