"""Save, verify, choose, complete from peers, prune."""
