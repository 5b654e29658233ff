"""Page of a comparison."""


def write(*a: object) -> None:
    """Write."""
