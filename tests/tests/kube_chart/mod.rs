//! What the tests of the chart share.

pub mod admission;
pub mod chart;
pub mod network;
pub mod pods;
pub mod rights;
pub mod tls;
