"""What is served under faults, switches of versions, overload and long runs: `make test-faults` and its like.

Figures go to `build/reliability/*.json`, and from there by hand into docs/reliability.md.
"""
