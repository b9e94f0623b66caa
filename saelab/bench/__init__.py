"""How fast this machine trains, selects, reads and writes."""
