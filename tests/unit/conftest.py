# SPDX-License-Identifier: MIT
"""Hypothesis without a deadline: how long an example takes says how busy the machine is, and nothing about the code."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("kecho", deadline=None)
settings.load_profile("kecho")
