//! swiftnbd: a container in OpenStack Object Storage (Swift) as a Linux block
//! device.
//!
//! # Layout
//! A request goes down through these, each of which knows only the next:
//!
//! | module | what it knows |
//! |---|---|
//! | [`nbd`] | NBD's wire format, requests in flight, errnos |
//! | [`device`] | bounds, alignment, read-only, what is advertised |
//! | [`image`] | byte ranges, dirty data, the volume formats |
//! | [`store`] | objects by name; HTTP and files, one module each |
//!
//! [`stack`] puts them together. [`control`] is what the commands do: it knows
//! netlink, processes, `/sys` and `/run`. [`config`] turns files and the
//! environment into checked settings (who we are to Swift in the words of
//! [`credentials`]), [`cli`] has the command line's types, [`compat`] those of the
//! original's programs, [`manual`] makes the manual of them, [`metrics`] has the counters
//! that each layer keeps, and [`error`] is what a user sees. Imports point down only; a
//! test checks it.
//!
//! # A write, from the kernel to Swift
//! The kernel's nbd driver sends WRITE over one end of a socketpair.
//! [`nbd::transmission`] reads it, [`device`] checks its bounds. In format 2
//! [`image::log`] copies it into the open segment, and it is answered; a segment is
//! sealed, encoded and stored under a new name, and the map shows it once it and
//! every one before it are durable. In format 1 [`image::objects`] copies it into its
//! table of dirty objects, which are overwritten in place. Either way requests go
//! through [`store::retry`], which waits out whatever fails, to [`store::swift`], for
//! which only 201 means stored; FLUSH is answered when everything that was answered
//! before it has its 201, or is in the journal ([`image::log::journal`]) where one was
//! asked for.

pub mod cli;
pub mod compat;
pub mod config;
pub mod control;
pub mod credentials;
pub mod device;
pub mod error;
pub mod image;
pub mod manual;
pub mod metrics;
pub mod nbd;
pub mod stack;
pub mod store;
