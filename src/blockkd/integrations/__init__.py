"""Distillation in other tools' training loops; each module imports its tool."""
