"""Plan the ranks, then supervise them: signals, deadlines, agreement between hosts, restarts, exit codes."""
