"""The decoder in plain torch: runs on every device, and is what the native one is held against."""
