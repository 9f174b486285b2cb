"""Data that models make: general text and answers of the base model itself, to hold on to while it learns a trade."""
