# SPDX-License-Identifier: MIT
"""Pure values: nothing here touches the machine."""
