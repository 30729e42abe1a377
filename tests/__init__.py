"""Folders mirror `app` and `training`; tests of the whole service and of the repository lie at the top."""

import pytest

pytest.register_assert_rewrite("tests.service", "tests.soak")
