"""The tools behind `make`, and the files of deploy/."""
