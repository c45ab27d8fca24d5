"""The exceptions qkernels raises. Each message says what came, what is accepted and what to do."""


class FormatError(ValueError):
    """The arrays of a weight format contradict each other or cannot be computed with."""


class ArgumentError(ValueError):
    """An argument has a value, shape, device or layout that the call does not accept."""


class DTypeError(TypeError):
    """An argument has a type or dtype that the call does not accept."""


class UnsupportedError(RuntimeError):
    """The request is valid, and nothing here can run it: a missing ISA, backend or feature."""
