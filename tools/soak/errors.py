"""What can go wrong with a soak itself."""


class SoakError(RuntimeError):
    """The soak could not be made; says what was got and wanted. What the engine did wrong is a verdict."""
