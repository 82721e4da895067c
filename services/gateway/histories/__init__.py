"""Plans' histories for looking back: the log's events in files of this machine, folded beside the event loop."""
