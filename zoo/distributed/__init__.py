"""Several processes as one run: joining and broadcasting (`runtime`), the parent of each (`supervisor`), signals."""
