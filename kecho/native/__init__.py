# SPDX-License-Identifier: MIT
"""The native programs: their sources, and where they are once built."""
