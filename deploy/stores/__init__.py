"""Proven versions in S3 buckets and OCI registries: pushed from one model repository, pulled into another."""
