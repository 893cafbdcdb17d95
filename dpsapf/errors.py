"""The one error that a user may see: it names the key, the value and the remedy."""


class UserError(ValueError):
    """A mistake in an input or a setting, told in one line.

    Args:
        key: the option, config key or file that is wrong.
        value: what was found there.
        remedy: what would be right.
    """

    def __init__(self, key: str, value: object, remedy: str) -> None:
        self.key, self.value, self.remedy = key, value, remedy
        super().__init__(f"{key} = {value!r}: {remedy}")
