//! Generated from the WIT package. Adapters use the SDK's own names, never these.
#![expect(clippy::all, clippy::unwrap_used, reason = "generated code")]

wit_bindgen::generate!({
    path: "../wit",
    world: "agent-adapter",
    pub_export_macro: true,
    export_macro_name: "__export_world",
    default_bindings_module: "ckrv_adapter_sdk::bindings",
    additional_derives: [PartialEq],
});
