"""Attribution graphs."""
