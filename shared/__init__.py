"""What Treadle's services share: events, commands, deciders and the event store."""
