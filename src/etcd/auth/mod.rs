//! Who a request comes from.

pub mod peer;
