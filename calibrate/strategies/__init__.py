"""Statistics in, threshold out: one pure function per module, none of which sees a model or data."""
