"""What each level of the data curation does: the default tasks, the same wall clock for each arm."""
