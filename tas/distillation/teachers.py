"""Who teaches: one network or several, checked before a training, and asked once an image where that is enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tas.calibration import modes_restored
from tas.data import Answered, InMemory, Split, map_tensors
from tas.distillation.losses import described, require_alike, require_classes_first
from tas.errors import BadNetwork
from tas.training import call, full_precision


class Ensemble(nn.Module):
    """Several teachers as one, by the mean of their probabilities at a temperature T.

    It gives logits [batch, classes], T log(mean over k of softmax(logits_k / T)): at T, their softmax is that mean.
    """

    def __init__(self, members: Sequence[nn.Module], temperature: float = 4.0) -> None:
        super().__init__()
        self.members, self.temperature = nn.ModuleList(members), temperature

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        answers = [member(*args, **kwargs) for member in self.members]
        if not all(isinstance(answer, Tensor) and answer.shape == answers[0].shape for answer in answers):
            found = ", ".join(map(described, answers))
            raise BadNetwork(f"teachers of one ensemble give logits of one shape each, got {found}")
        logs = [functional.log_softmax(answer.float() / self.temperature, dim=1) for answer in answers]
        return self.temperature * (torch.stack(logs).logsumexp(0) - torch.tensor(float(len(logs))).log())


def ask(teacher: nn.Module, inputs: Any, dtype: str = "float32") -> Any:
    """The answers of a teacher in eval mode, without gradients, in float32; "bfloat16" runs it under autocast.

    Not in inference mode: what a process keeps of a first call there (tables by window size) could not take part in the
    student's backward.
    """
    device = next((tensor.device for tensor in teacher.parameters()), torch.device("cpu"))
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        return map_tensors(full_precision, call(teacher, inputs))


def require_teacher(
    student: nn.Module, teacher: nn.Module, inputs: Any, targets: Any = None, own_loss: bool = False
) -> None:
    """`BadNetwork` unless a teacher takes the student's inputs and gives logits of the same shape, in eval mode, with
    classes where soft targets take them; `own_loss`: outputs may be anything."""
    with modes_restored(student), modes_restored(teacher):
        ours = ask(student.eval(), inputs)
        try:
            theirs = ask(teacher.eval(), inputs)
        except BadNetwork:
            raise
        except Exception as problem:  # the user's code may fail in any way
            reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200]
            raise BadNetwork(
                f"a teacher takes the student's inputs, {described(inputs)}, but {type(teacher).__name__} refuses "
                f"them: {reason}; take a teacher for inputs of this size"
            ) from problem
    if not own_loss:
        require_alike(ours, theirs)
        require_classes_first(ours, targets)


def answered(split: Split, teacher: nn.Module, batch: int, dtype: str, device: torch.device | str) -> Split:
    """The same examples, each target with what the teacher (in eval mode) says to its input: it is asked once, and
    what is kept is what it would say again, but for rounding in batches of other images. For splits in memory that are
    not augmented."""
    found = [ask(teacher, inputs, dtype).cpu() for inputs, _ in split.batches(batch, device=device)]
    assert isinstance(split.source, InMemory)
    return replace(split, source=Answered(split.source, torch.cat(found)))
