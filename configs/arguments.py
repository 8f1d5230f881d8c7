"""The part of --config=FILE:ARGUMENT after the colon: `name=value,name=value`."""


def parse(argument: str, **choices: tuple[str, ...]) -> dict[str, str]:
    """The options by name; what is not given takes its first choice.

    Raises:
      ValueError: an option or a value that is not among the choices.
    """
    options = {name: values[0] for name, values in choices.items()}
    for item in filter(None, argument.split(",")):
        name, _, value = item.partition("=")
        if name not in choices:
            raise ValueError(f"config option {name!r} is unknown; there is {', '.join(choices)}")
        if value not in choices[name]:
            raise ValueError(f"config option {name}={value!r} is unknown; there is {', '.join(choices[name])}")
        options[name] = value
    return options
