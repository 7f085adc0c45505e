//! The harness of the end-to-end scenarios: real git, real sshd, real agents, the real `ckrv` as a process; scripted is only the
//! model behind the agents. Each piece is a file, and each has a test of its own in `tests/{fast,full}_fixtures.rs`.
//!
//! `tests/fast_*.rs` need Rust, git and a C linker. `tests/full_*.rs` need the bench that `cargo xtask test` sets up, and fail
//! where a part of it is missing.

pub mod activation;
pub mod agents;
pub mod api;
pub mod audit;
pub mod aws;
pub mod aws_records;
pub mod bench;
pub mod browser;
pub mod fault_proxy;
pub mod faults;
pub mod forge;
pub mod git;
pub mod git_http;
pub mod http;
pub mod kube;
pub mod kube_break;
pub mod kube_faults;
pub mod kube_policy;
pub mod kwok;
pub mod lambda_front;
pub mod lambda_runtime;
pub mod leaks;
pub mod ministack;
pub mod model;
pub mod oidc;
pub mod otlp;
pub mod processes;
pub mod records;
pub mod relay;
pub mod repo;
pub mod scene;
pub mod server;
pub mod sshd;
pub mod tap;
pub mod traps;
pub mod user;
pub mod wait;
pub mod witness;
