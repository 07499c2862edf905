# SPDX-License-Identifier: MIT
"""What people see: tables, histograms, pictures."""
