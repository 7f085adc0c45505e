//! The adapters that come with the program.

const BUILTIN: [(&str, &[u8]); 3] = [
    ("claude", include_bytes!("../../../agents-wasm/prebuilt/claude.wasm")),
    ("gemini", include_bytes!("../../../agents-wasm/prebuilt/gemini.wasm")),
    ("script", include_bytes!("../../../agents-wasm/prebuilt/script.wasm")),
];

/// The component of a built-in adapter.
#[must_use]
pub fn builtin(name: &str) -> Option<&'static [u8]> {
    BUILTIN.iter().find(|(known, _)| *known == name).map(|(_, bytes)| *bytes)
}

/// The names that [`builtin`] knows.
pub fn builtin_names() -> impl Iterator<Item = &'static str> {
    BUILTIN.iter().map(|(name, _)| *name)
}
