"""Great Expectations on the tables that stages write."""
