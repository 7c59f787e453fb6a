"""What makes the results under reports/: run from a clone, not part of the packages."""
