"""What keeps a job's workers going: starts them, watches them, forms them into groups, replaces them."""
