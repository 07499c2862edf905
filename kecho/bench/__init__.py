# SPDX-License-Identifier: MIT
"""The instrument: runs the native load generator against services and keeps what it measured."""
