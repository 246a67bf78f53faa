"""What a policy can do, measured on problems: estimates, folders, comparisons, grading again."""
