"""The dispatch mode that all of tracing's are: it sees every operator of a forward, whatever Python does."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class Watching(TorchDispatchMode):
    """What is compiled is no concern here, and guarding against it loads the compiler: seconds."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
