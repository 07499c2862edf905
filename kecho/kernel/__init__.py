# SPDX-License-Identifier: MIT
"""What talks to the kernel."""
