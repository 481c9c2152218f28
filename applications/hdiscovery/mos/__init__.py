"""A user study of the directions: the mean opinion score (MOS) of Sec. 5.5 of the paper."""
