"""Where Penstock keeps everything: rows in, rows out, one fenced commit at a time."""
