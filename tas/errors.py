"""What can be wrong with what the user brought. Every message states the rule, the value found, and what to do."""


class TasError(Exception):
    """Base of every error that the user can mend; the shell answers it with exit code 2."""


class BadNetwork(TasError):
    """The network cannot be built, loaded, or run on the example inputs."""


class Untraceable(TasError):
    """Nothing in the network can be searched; the message lists why each size was kept."""


class Infeasible(TasError):
    """No architecture of the space meets the budget, or the budget exceeds the original."""


class BadRecipe(TasError):
    """A recipe, an option or a run folder is wrong."""


class BadData(TasError):
    """The data cannot be read, or does not fit the task."""


class Diverged(TasError):
    """A loss or a weight became something else than a number during a training."""
