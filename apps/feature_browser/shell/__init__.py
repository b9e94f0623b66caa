"""What stands around every page: its frame, its address, its server."""
