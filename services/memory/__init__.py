"""Every byte worth counting has an account."""
