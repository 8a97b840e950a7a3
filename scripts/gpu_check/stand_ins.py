"""Stand-ins for packages that the tensor code's imports want and nothing here uses. TODO."""

installed: list[str] = []


def install() -> list[str]:
    return []
