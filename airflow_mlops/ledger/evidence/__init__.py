"""The evidence pack of a release: one directory that proves why a version went live, and the ML Test Score that follows from it."""
