"""A domain's own words: mining, real merges, rows, fertility; and tokenizers made from nothing."""
