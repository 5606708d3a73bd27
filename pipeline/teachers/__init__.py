"""Teachers: models that find the phrases of a caption in its image, behind one interface."""

from pipeline.teachers.interface import Found, Teacher, TeacherConfig
from pipeline.teachers.load import load_teacher, teacher_identity

__all__ = ["Found", "Teacher", "TeacherConfig", "load_teacher", "teacher_identity"]
