"""What the tests of the study share."""

import pytest

from study.config import Study
from tests.study.samples import QUICK


@pytest.fixture
def study(tmp_path):
    (tmp_path / "study.toml").write_text(QUICK)
    return Study.read(tmp_path / "study.toml")
