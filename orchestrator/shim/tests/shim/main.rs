//! The shim as its job runner sees it: the real binary, real pipes, real processes.

mod checkout;
mod runs;
mod support;
