"""Text classifiers: what of them must fit together, students made of teachers, and GLUE's tasks."""
