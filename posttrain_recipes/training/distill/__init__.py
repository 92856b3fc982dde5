"""Distillation: teachers, and learning from them on the student's own samples."""
