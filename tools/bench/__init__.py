"""`make bench`: what each operation costs, beside what else one could use, in one run."""
