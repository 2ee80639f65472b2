"""A fine-tuned network whose last exit teaches another network's: who may, and what it says.

Letters: B batch rows, C classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from multiexit.model.model import MultiExitModel, RunStage
from multiexit.policies.base import need_classes
from multiexit.recipes import Seen
from multiexit.runtime import evaluating


class Teaching:
    """A teacher at work.

    Args:
        teacher: fine-tuned; it is run in evaluation mode, without gradients, where the student is,
            and is no part of the student.
        temperature: τ > 0, of both networks' answers.
        method: its name in refusals.
        instead: what serves where this doesn't.

    Raises:
        ValueError: a temperature that isn't above 0, or a teacher of another problem than
            classification.
    """

    def __init__(self, teacher: MultiExitModel, temperature: float, method: str, instead: str):
        if not isinstance(teacher, MultiExitModel):
            raise ValueError(
                f"the teacher must be a MultiExitModel, got {type(teacher).__name__}: "
                "MultiExitModel(multiexit.wrap(network), exits=[…]), its last stage alone"
            )
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.teacher, self.temperature = teacher, temperature
        self._method, self._instead = method, instead
        need_classes(teacher.num_classes, method, instead)
        self._check_problem("teacher", teacher.problem)

    def divergence(self, seen: Seen, run_stage: RunStage | None = None) -> Tensor:
        """p_T^τ·log(p_T^τ / p_S^τ) by row and class, [B, C], p^τ = softmax(logits / τ), of the
        teacher's last exit and the student's.

        Args:
            seen: what the student made of a batch.
            run_stage: runs a stage of the teacher, in place of its backbone's.

        Raises:
            ValueError: a student of another problem, or of another number of classes.
        """
        self._check_problem("student", seen.problem)
        student_BC = seen.logits_MBC[-1].float() / self.temperature
        if student_BC.shape[-1] != self.teacher.num_classes:
            raise ValueError(
                f"the student has {student_BC.shape[-1]} classes, the teacher "
                f"{self.teacher.num_classes}: they must be the same"
            )
        with torch.no_grad(), evaluating(self.teacher.to(student_BC.device)):
            said = self.teacher.run(seen.args, seen.inputs, run_stage=run_stage)
        teacher_BC = said.logits_MBC[-1].float() / self.temperature
        return F.kl_div(student_BC.log_softmax(-1), teacher_BC.softmax(-1), reduction="none")

    def check_apart(self, student: MultiExitModel, progress: float) -> None:
        """Before a step: refuse what a batch doesn't show.

        Raises:
            ValueError: a student that trains the teacher's own parameters, or whose classes have
                other names or another order.
        """
        taught = {p for p in student.parameters() if p.requires_grad}
        if not taught.isdisjoint(self.teacher.parameters()):
            raise ValueError(
                "the student trains parameters that are the teacher's too, which would change with "
                "it: make the student of copy.deepcopy(backbone)"
            )
        names = self.teacher.labels, student.labels
        if None not in names and names[0] != names[1]:
            raise ValueError(
                f"the teacher's classes are {names[0]}, the student's {names[1]}: they must be the "
                "same, in the same order"
            )

    def _check_problem(self, who: str, problem: str | None) -> None:
        if problem not in (None, "classification"):
            raise ValueError(
                f"{self._method} teaches one distribution over classes a row, and this {who}'s "
                f"problem is {problem!r}: use {self._instead}"
            )
