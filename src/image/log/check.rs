//! Reads everything and says what is damaged.
