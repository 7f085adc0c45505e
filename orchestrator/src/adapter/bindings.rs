//! Generated from the WIT package; converted at once to the types of `ckrv_core::plan`.
#![expect(clippy::all, clippy::unwrap_used, reason = "generated code")]

wasmtime::component::bindgen!({
    path: "../agents-wasm/wit",
    world: "agent-adapter",
});
