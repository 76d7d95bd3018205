"""The whole of Penstock as a user meets it: the README as written, real data through a real broker."""
