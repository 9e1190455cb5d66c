"""What both commands need as PID 1: children that are started, killed and reaped whole, and a log of whole lines."""
