"""Checkpoints in S3: no disk of the host's own holds a copy."""
