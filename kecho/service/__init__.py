# SPDX-License-Identifier: MIT
"""One service, from `up` to `down`."""
