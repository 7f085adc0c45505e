//! Generated from the WIT package; converted at once to the types of `ckrv_core::plan`.

wasmtime::component::bindgen!({
    path: "../agents-wasm/wit",
    world: "agent-adapter",
});
