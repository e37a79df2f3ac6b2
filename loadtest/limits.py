"""Beyond which it is the client that is measured: it has no CPU time left, or sends too late."""

MOST_CPU, MOST_LAG_MS, MOST_LAG_SHARE = 0.85, 5.0, 0.1
