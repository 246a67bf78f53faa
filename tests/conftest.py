"""Lanes. The default lane runs Triton kernels in the interpreter, which must be chosen before triton is imported; the compile and gpu lanes must not."""

import os

import pytest

LANES_WITHOUT_INTERPRETER = ("compile", "gpu", "vllm", "verl", "package")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("markexpr") not in LANES_WITHOUT_INTERPRETER:
        os.environ["TRITON_INTERPRET"] = "1"
