"""Models in memory and on disk: loading, students, grafts, builds, exports and whole pipelines."""
