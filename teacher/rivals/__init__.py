"""Other backbones behind the teacher's interface: what the same pipeline sees when the generator is exchanged.

Every rival takes the frames `teacher.features.Teacher` takes and gives the same `Features`; docs/backbones.md says what each
one is, where it is tapped, and what the reference does differently.

    python -c "from teacher.rivals import RIVALS; print(*RIVALS, sep='\\n')"
"""

from teacher.rivals.registry import RIVALS, Rival, load_rival

__all__ = ["RIVALS", "Rival", "load_rival"]
