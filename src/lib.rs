//! swiftnbd: a container in OpenStack Object Storage (Swift) as a Linux block
//! device.

pub mod cli;
pub mod config;
pub mod control;
pub mod device;
pub mod error;
pub mod image;
pub mod nbd;
pub mod stack;
pub mod store;
