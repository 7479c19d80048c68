"""What can go wrong with a measurement."""


class BenchError(RuntimeError):
    """A measurement could not be made; says what was got and wanted."""
