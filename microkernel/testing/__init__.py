"""For tests of services: the real kernel on the test's own loop, and a check that nothing is left behind."""

from microkernel.testing.kernel import TestKernel

__all__ = ["TestKernel"]
