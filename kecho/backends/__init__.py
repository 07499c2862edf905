# SPDX-License-Identifier: MIT
"""One module a mode, behind the interface in `base`."""
