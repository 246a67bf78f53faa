"""Faults on purpose: a run that is killed, starved or fed rubbish must end like an undisturbed one, or say what to do."""
