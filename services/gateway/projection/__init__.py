"""The read model: the event log folded, in memory for streams, in SQL for lists."""
