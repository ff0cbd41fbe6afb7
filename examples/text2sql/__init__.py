"""Questions to SQL for an invented wholesale company; see README.md."""
