"""Run directories: `layout` says what lies where, `mirror` copies a run's small files to and from a bucket."""
