# SPDX-License-Identifier: MIT
"""Hypothesis without a deadline: the time of an example depends on how busy the machine is, not on the code."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("kecho", deadline=None)
settings.load_profile("kecho")
