# SPDX-License-Identifier: MIT
"""kecho: a TCP echo service that never leaves the kernel, and the instrument that measures it."""

__version__ = "0.1.0"
