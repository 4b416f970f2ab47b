"""From a judge's answers to a scorer folder: rubric, judges, label store, student, calibration, export."""
