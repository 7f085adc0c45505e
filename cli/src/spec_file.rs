//! The spec that a job is made of: found, read and checked before anything is sent.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use ckrv_core::spec::Spec;
use ckrv_core::wire::MAX_SPEC_BYTES;
use serde_json::json;

use crate::error::{CliError, Kind};

/// A spec's text, and the name of its file where it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecFile {
    pub text: String,
    pub name: Option<String>,
}

/// Reads SPEC: a file, `-` for stdin, or nothing for the only file of `.ckrv/specs/`.
///
/// # Errors
/// Exit 2 for a spec that is missing, empty, too large, no UTF-8 or no valid spec, and where there is more than one to choose from.
pub fn read(argument: Option<&str>, root: Option<&Path>) -> Result<SpecFile, CliError> {
    let (bytes, name, shown) = match argument {
        Some("-") => (bounded(std::io::stdin().lock(), "the spec on stdin")?, None, "the spec on stdin".to_owned()),
        Some(path) => from_file(Path::new(path))?,
        None => from_file(&only_spec(root)?)?,
    };
    let bad = |code: &'static str, why: String| CliError::new(Kind::Usage, code, format!("{shown} {why}"));
    if bytes.len() > MAX_SPEC_BYTES {
        return Err(bad("spec_too_large", format!("is too large: at most {} KiB are accepted", MAX_SPEC_BYTES / 1024)));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        bad("spec_not_utf8", format!("is not UTF-8 (byte {})", error.utf8_error().valid_up_to() + 1))
            .hint("save it as UTF-8 text")
    })?;
    if text.trim().is_empty() {
        return Err(bad("spec_empty", "is empty".to_owned()).hint("write in it what the agent should do"));
    }
    if let Err(error) = Spec::parse(&text, name.as_deref()) {
        return Err(CliError::new(Kind::Usage, "spec_invalid", format!("{shown}: {error}")));
    }
    Ok(SpecFile { text, name })
}

fn from_file(path: &Path) -> Result<(Vec<u8>, Option<String>, String), CliError> {
    let shown = format!("the spec {}", path.display());
    let file = std::fs::File::open(path).and_then(|file| {
        let is_dir = file.metadata()?.is_dir();
        if is_dir { Err(std::io::Error::from(std::io::ErrorKind::IsADirectory)) } else { Ok(file) }
    });
    let file = file.map_err(|error| {
        let code = if error.kind() == std::io::ErrorKind::NotFound { "spec_missing" } else { "spec_unreadable" };
        CliError::new(Kind::Usage, code, format!("can't read {shown}")).source(error)
    })?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok((bounded(file, &shown)?, name, shown))
}

/// One byte more than is accepted tells that there is too much; more is not read.
fn bounded(source: impl std::io::Read, shown: &str) -> Result<Vec<u8>, CliError> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_SPEC_BYTES).unwrap_or(u64::MAX) + 1;
    source.take(limit).read_to_end(&mut bytes).map_err(|error| CliError::io(format!("can't read {shown}"), error))?;
    Ok(bytes)
}

fn only_spec(root: Option<&Path>) -> Result<PathBuf, CliError> {
    let folder = root.unwrap_or(Path::new(".")).join(".ckrv/specs");
    let mut specs: Vec<PathBuf> = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    specs.retain(|path| {
        path.is_file() && path.extension().is_some_and(|ext| ["md", "yaml", "yml"].iter().any(|known| ext == *known))
    });
    specs.sort();
    match specs.len() {
        1 => Ok(specs.remove(0)),
        0 => Err(CliError::new(Kind::Usage, "spec_missing", "no spec is given, and there is none in .ckrv/specs/")
            .hint("name one: `ckrv run SPEC`, or `-` for stdin")),
        _ => {
            let names: Vec<String> = specs
                .iter()
                .map(|path| format!(".ckrv/specs/{}", path.file_name().unwrap_or_default().to_string_lossy()))
                .collect();
            let list = names.iter().map(|name| format!("\n  {name}")).collect::<String>();
            Err(CliError::new(Kind::Usage, "spec_ambiguous", format!("which spec? There are several:{list}"))
                .hint(format!("name one, for example `ckrv run {}`", names[0]))
                .details(json!({ "specs": names })))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(bytes: &[u8]) -> CliError {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.md");
        std::fs::write(&path, bytes).unwrap();
        read(path.to_str(), None).unwrap_err()
    }

    #[test]
    fn a_bad_spec_is_refused_before_anything_is_sent() {
        assert_eq!(refusal(b" \n").code, "spec_empty");
        assert_eq!(refusal(b"caf\xe9").code, "spec_not_utf8");
        assert_eq!(refusal(&vec![b'x'; MAX_SPEC_BYTES + 1]).code, "spec_too_large");
        let missing = read(Some("/nowhere/a.md"), None).unwrap_err();
        assert_eq!((missing.code.as_ref(), missing.kind), ("spec_missing", Kind::Usage));
    }

    #[test]
    fn the_only_spec_is_taken_and_several_are_listed() {
        let root = tempfile::tempdir().unwrap();
        let specs = root.path().join(".ckrv/specs");
        std::fs::create_dir_all(&specs).unwrap();
        assert_eq!(read(None, Some(root.path())).unwrap_err().code, "spec_missing");
        std::fs::write(specs.join("one.md"), "do it").unwrap();
        assert_eq!(read(None, Some(root.path())).unwrap().name.as_deref(), Some("one.md"));
        std::fs::write(specs.join("two.yaml"), "task: do it").unwrap();
        let error = read(None, Some(root.path())).unwrap_err();
        assert!(error.message.contains("one.md") && error.message.contains("two.yaml"));
        assert_eq!(error.kind, Kind::Usage);
    }
}
