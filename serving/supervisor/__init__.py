"""Keeps one Triton serving: `python -m serving.supervisor /models`, the first process of a container.

settings  -> what is opened to whom, as arguments for Triton
watch     -> whether it really serves: its processes are looked at, its models are asked
loop      -> start, watch, start again; stop in order
upgrade   -> what changes in the repository is tried out, then loaded; `view` is what Triton is shown
metrics   -> what Prometheus reads of all that, and /health
logs      -> Triton's lines as JSON

Triton 2.51 never restarts a Python model whose process died and goes on saying that it is ready, and requests
that wait on that process may never end while the server lives. So what is brought back is the whole server.
"""
