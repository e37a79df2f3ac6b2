"""Keeps one Triton serving: `python -m serving.supervisor /models`, the first process of a container.

settings  -> what is opened to whom, as arguments for Triton
liveness  -> whether it makes progress: its processes are looked at; what a restart mends
readiness -> whether it answers: its models are asked; what balancers want to know
supervisor -> start, look after, start again; stop in order
rollout   -> which versions are desired, tried, served, last good: a state machine on disk
follow    -> what changes in the repository is tried out, then loaded, as `rollout` decides
served    -> the server that users call: load, let go, look after; `snapshot` is what Triton is shown
metrics   -> what Prometheus reads of all that, and /health
logs      -> Triton's lines as JSON

Triton 2.51 never restarts a Python model whose process died and goes on saying that it is ready, and requests
that wait on that process may never end while the server lives. So what is brought back is the whole server.
"""
