# SPDX-License-Identifier: MIT
"""This machine around a run: its limits, and where the client is placed."""
