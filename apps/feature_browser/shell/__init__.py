"""The frame around every page: top bar, canvas, guard, server."""
