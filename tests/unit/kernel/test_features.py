# SPDX-License-Identifier: MIT
"""kecho.kernel.features: what it advises."""

import shutil

import pytest

from kecho.kernel.features import apt_remedy


@pytest.mark.skipif(shutil.which("apt-cache") is None, reason="no APT here")
def test_a_package_that_apt_can_install() -> None:
    """A virtual package is none: others provide it."""
    assert apt_remedy("make", "then go on") == "apt-get install make, then go on"
    for package in ("no-such-package", "mail-transport-agent"):
        assert "APT has no" in apt_remedy(package)
