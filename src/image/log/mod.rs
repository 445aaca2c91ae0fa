//! Format 2: a log of immutable segments, and a map of what is where.
//!
//! Knows: segments, the map, roots, epochs. Does not know: HTTP, devices, NBD.
//! [`format`] has the objects byte by byte.

pub mod format;
