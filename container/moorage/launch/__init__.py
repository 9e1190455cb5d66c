"""Plan the ranks, then supervise them: PID 1 of each host, in agreement with the other hosts."""
